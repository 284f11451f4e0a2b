"""Statistics on disk: the same bits back, and a refusal of every other file."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ditprune
from ditprune.checkpoints.statistics_file import read_statistics_file, save_statistics
from ditprune.errors import OutputError, StatisticsError
from ditprune.method.statistics.column_norm import start_norm, update_norm
from ditprune.writing import tensors_file

KEY = "ditprune.statistics"


@pytest.fixture
def file(tiny_stats, tmp_path):
    save_statistics({"transformer": tiny_stats}, tmp_path / "s.safetensors")
    return tmp_path / "s.safetensors"


def refused(file, match: str) -> None:
    with pytest.raises(StatisticsError, match=match) as caught:
        read_statistics_file(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert "calibrate" in str(caught.value)


def rewrite(file, change_tensors=None, change_record=None) -> None:
    """The file with its tensors and its record changed."""
    with safe_open(file, framework="pt") as stream:
        record = json.loads(stream.metadata()[KEY])
    tensors = load_file(file)
    if change_tensors:
        change_tensors(tensors)
    if change_record:
        change_record(record)
    save_file(tensors, file, metadata={KEY: json.dumps(record)})


def test_every_bit_comes_back(tiny_dit, tiny_stats, file, same_bits) -> None:
    (loaded,) = read_statistics_file(file).values()
    assert list(loaded.column_norms) == list(tiny_stats.column_norms)
    for name, state in tiny_stats.column_norms.items():
        same_bits(loaded.column_norms[name].sum_squares, state.sum_squares)
        same_bits(loaded.column_norm(name), tiny_stats.column_norm(name))
        assert loaded.num_tokens(name) == tiny_stats.num_tokens(name)
    assert dict(loaded.fingerprints) == dict(tiny_stats.fingerprints)
    assert loaded.num_calls == tiny_stats.num_calls == 3
    one, two = tiny_dit(), tiny_dit()
    ditprune.prune_(one, tiny_stats)
    ditprune.prune_(two, loaded)
    for name, tensor in one.state_dict().items():
        same_bits(two.state_dict()[name], tensor)


def test_what_one_float64_does_not_hold_comes_back(tmp_path, same_bits) -> None:
    """Amplitudes that spread over a million, in a file that goes on."""
    state = start_norm(3)
    for size in (1e-3, 1.0, 1e4):
        state = update_norm(state, size * torch.rand(100, 3))
    assert state.rest.any()
    saved = ditprune.Statistics({"q": state}, {"q": "f"}, 3)
    save_statistics({"transformer": saved}, tmp_path / "s.safetensors")
    (loaded,) = read_statistics_file(tmp_path / "s.safetensors").values()
    same_bits(loaded.column_norms["q"].rest, state.rest)
    rewrite(tmp_path / "s.safetensors", lambda tensors: [t.mul_(1e20) for t in tensors.values()
                                                         if (t < 0).any()])  # fmt: skip
    refused(tmp_path / "s.safetensors", "is not what the sums of a layer lack")


def test_shared_states_are_stored_once_and_stay_shared(tiny_stats, file) -> None:
    (loaded,) = read_statistics_file(file).values()

    def sharing(stats) -> set[frozenset[str]]:
        groups: dict[int, set[str]] = {}
        for name, state in stats.column_norms.items():
            groups.setdefault(id(state), set()).add(name)
        return {frozenset(names) for names in groups.values()}

    assert sharing(loaded) == sharing(tiny_stats)
    assert any(len(names) == 3 for names in sharing(loaded))
    assert len(load_file(file)) == len(sharing(tiny_stats)) < len(tiny_stats.column_norms)


def test_protocol_and_never_called_come_back(tiny_dit, batches, tmp_path) -> None:
    denoiser = tiny_dit()
    protocol = {"seed": 7, "timesteps": "uniform", "labels": [0, 1], "guidance_scale": None}
    stats = ditprune.calibrate(denoiser, batches(denoiser), protocol)
    one_less = dict(list(stats.column_norms.items())[1:])
    missing = tuple(stats.column_norms.keys() - one_less.keys())
    stats = ditprune.Statistics(one_less, stats.fingerprints, 3, missing, protocol)
    save_statistics({"transformer": stats}, tmp_path / "s.safetensors")
    (loaded,) = read_statistics_file(tmp_path / "s.safetensors").values()
    assert dict(loaded.protocol) == protocol
    assert loaded.never_called == missing == ("transformer_blocks.0.norm1.linear",)


def test_the_same_statistics_are_the_same_bytes(tiny_stats, file, tmp_path) -> None:
    save_statistics(read_statistics_file(file), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_saving_replaces_and_leaves_nothing_else(tiny_stats, file) -> None:
    before = file.read_bytes()
    file.write_bytes(b"old")
    save_statistics({"transformer": tiny_stats}, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_place_that_cannot_be_written_is_refused(tiny_stats, tmp_path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_statistics({"transformer": tiny_stats}, tmp_path / "nowhere" / "s.safetensors")


def test_a_failure_while_writing_leaves_the_old_file(tiny_stats, file, monkeypatch) -> None:
    def full(*_args) -> bytes:
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(tensors_file, "header", full)
    with pytest.raises(OutputError, match="no space left"):
        save_statistics({"transformer": tiny_stats}, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_nothing_there_is_refused(tmp_path) -> None:
    refused(tmp_path / "s.safetensors", "no such statistics file; make one")
    refused(tmp_path, "no such statistics file")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04.", b"\x00" * 99, b"\xff" * 8])
def test_what_is_not_safetensors_is_refused(content, file) -> None:
    file.write_bytes(content)
    refused(file, "not a complete safetensors file")


@pytest.mark.parametrize("num_bytes", [7, 100, -1])
def test_a_truncated_file_is_refused(num_bytes, file) -> None:
    file.write_bytes(file.read_bytes()[:num_bytes])
    refused(file, "not a complete safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {KEY: ""}, {KEY: "[]"}, {KEY: "{}"},
                                      {KEY: "3"}, {KEY: "{"}, {KEY: '{"format": 1}'},
                                      {KEY: "[" * 100_000}], ids=lambda m: str(m)[:40])  # fmt: skip
def test_other_safetensors_are_refused(metadata, file) -> None:
    save_file({"weight": torch.ones(3, dtype=torch.float64)}, file, metadata=metadata)
    refused(file, "not statistics of ditprune")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), -0.5e-300])
def test_sums_that_cannot_be_are_refused(value, file) -> None:
    def spoil(tensors) -> None:
        next(iter(tensors.values()))[2, 3] = value

    rewrite(file, spoil)
    refused(file, "negative, NaN or Inf")


@pytest.mark.parametrize("change", [torch.Tensor.float, torch.Tensor.half, lambda t: t[None]])
def test_another_dtype_or_rank_is_refused(change, file) -> None:
    def spoil(tensors) -> None:
        first = next(iter(tensors))
        tensors[first] = change(tensors[first]).contiguous()

    rewrite(file, spoil)
    refused(file, "not float64")


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": None},
        {"layers": {"a": {}}},
        {"layers": {"a": {"state": "nowhere", "tokens_in_bin": [1]}}},
        {"layers": {"a": 1}},
        {"fingerprints": None},
        {"fingerprints": [1]},
        {"num_calls": "many"},
        {"never_called": 1},
        {"protocol": 3},
        {"num_inputs": {"a": "x"}},
        {"unused": 4},
        {"padding": {"mask": [1]}},
        {"padding": [[1, 2]]},
    ],
    ids=str,
)
def test_an_edited_record_is_refused(changes, file) -> None:
    rewrite(file, None, lambda record: record["denoisers"]["transformer"].update(changes))
    refused(file, "not statistics of ditprune")


@pytest.mark.parametrize(
    "changes",
    [{"format": 1}, {"format": None}, {"denoisers": None}, {"denoisers": {"a": 3}}],
    ids=str,
)
def test_another_format_is_refused(changes, file) -> None:
    rewrite(file, None, lambda record: record.update(changes))
    refused(file, "not statistics of ditprune")


def test_tokens_are_counted_in_every_bin(file) -> None:
    def change(record) -> None:
        layers = record["denoisers"]["transformer"]["layers"]
        layers["transformer_blocks.0.attn1.to_q"]["tokens_in_bin"].pop()

    rewrite(file, None, change)
    refused(file, "counts tokens in 10 bins of 11")


def test_the_denoisers_of_one_pipeline_are_kept_apart(tiny_stats, tmp_path, same_bits) -> None:
    other = dataclasses.replace(
        tiny_stats, column_norms=copy.deepcopy(tiny_stats.column_norms), num_calls=9,
        padding={"mask": (3, 8)}, unused=("a",),
    )  # fmt: skip
    both = {"transformer": tiny_stats, "transformer_2": other}
    save_statistics(both, tmp_path / "s.safetensors")
    loaded = read_statistics_file(tmp_path / "s.safetensors")
    assert list(loaded) == ["transformer", "transformer_2"]
    assert [one.num_calls for one in loaded.values()] == [3, 9]
    assert loaded["transformer_2"].padding == {"mask": (3, 8)}
    assert loaded["transformer_2"].unused == ("a",)
    for name in tiny_stats.column_norms:
        for one in loaded.values():
            same_bits(one.column_norm(name), tiny_stats.column_norm(name))
        assert loaded["transformer"].num_inputs[name] == 3


@pytest.mark.parametrize("key", ["fingerprints", "num_calls", "never_called", "protocol", "layers"])
def test_a_record_without_one_of_its_parts_is_refused(key, file) -> None:
    rewrite(file, None, lambda record: record["denoisers"]["transformer"].pop(key))
    refused(file, f"missing '{key}'")


def test_an_edited_fingerprint_makes_it_another_models(tiny_dit, file) -> None:
    def change(record) -> None:
        record["denoisers"]["transformer"]["fingerprints"]["transformer_blocks.0.attn1.to_q"] = (
            "0" * 32
        )

    rewrite(file, None, change)
    with pytest.raises(StatisticsError, match=r"1 of 21 targets differ, first .*0\.attn1\.to_q"):
        ditprune.prune_(tiny_dit(), read_statistics_file(file)["transformer"])


def test_a_layer_taken_out_is_noticed_when_pruning(tiny_dit, file) -> None:
    def change(record) -> None:
        del record["denoisers"]["transformer"]["layers"]["transformer_blocks.0.attn1.to_q"]

    rewrite(file, None, change)
    with pytest.raises(StatisticsError, match=r"no layer 'transformer_blocks\.0\.attn1\.to_q'"):
        ditprune.prune_(tiny_dit(), read_statistics_file(file)["transformer"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"padding": {"mask": [0, 0]}}, "0 of 0 tokens masked"),
        ({"padding": {"mask": [3, 2]}}, "3 of 2 tokens masked"),
        ({"padding": {"mask": [1]}}, "not statistics"),
        ({"never_called": [1]}, "in place of names"),
        ({"unused": [{}]}, "in place of names"),
        ({"unused": "ab"}, "in place of names"),
        ({"protocol": {"prompts": ["\ud800"]}}, "half of a character"),
        ({"num_calls": 10**4000}, "digits"),
        ({"num_inputs": {"a": float("nan")}}, "NaN"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_odd_values_are_refused_when_they_are_read(file, change, said) -> None:
    rewrite(file, change_record=lambda record: record["denoisers"]["transformer"].update(change))
    refused(file, said)
