"""A copy with some tensors changed: every other byte of the model folder is what it was."""

from __future__ import annotations

import hashlib
import pickle

import pytest
import torch

from ditprune.checkpoints.copy_folder import copied_bytes, copy_other_files, other_files
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.shard_writer import ShardWriter
from ditprune.checkpoints.weights import Weights, layout_of, sha256
from folders import STEM, Payload, files_of, save_denoiser, save_pipeline

NAME = "transformer_blocks.1.attn1.to_k.weight"


@pytest.fixture
def sharded(tiny_dit, tmp_path):
    return save_pipeline(
        tiny_dit(), tmp_path / "model", dtype=torch.bfloat16, max_shard_size="60KB"
    )


def raw_of(weights):
    """Every tensor with its bytes, shard by shard, by offset."""
    for entry in weights.in_order():
        yield entry, weights.raw(entry)


def copy(folder, out, change=None):
    """The folder rewritten, one tensor's bytes changed."""
    model = locate(str(folder))
    weights = Weights(model.denoiser)
    copy_other_files(model, {"transformer": weights}, out)
    with ShardWriter(layout_of(weights), out / model.denoiser.relative_to(model.root)) as writer:
        for entry, raw in raw_of(weights):
            if entry.name == NAME and change:
                change(raw)
            writer.write(entry, raw)
    return model, weights


def test_without_a_change_the_copy_is_the_folder(sharded, tmp_path) -> None:
    model, weights = copy(sharded, tmp_path / "out")
    assert len(weights.shards) > 2
    assert files_of(tmp_path / "out") == files_of(sharded)
    assert copied_bytes(model, {"transformer": weights}) == sum(
        map(len, files_of(sharded).values())
    )


def test_only_the_bytes_of_the_changed_tensor_change(sharded, tmp_path) -> None:
    def change(raw: bytearray) -> None:
        raw[:] = bytes(255 - byte for byte in raw)

    _, weights = copy(sharded, tmp_path / "out", change)
    entry = weights.entries[NAME]
    before, after = files_of(sharded), files_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {f for f in before if before[f] != after[f]} == {f"transformer/{entry.file.name}"}
    one, two = (files[f"transformer/{entry.file.name}"] for files in (before, after))
    changed = {i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b}
    assert changed == set(range(entry.offset, entry.offset + entry.size_bytes))


def test_the_writer_takes_tensors_in_any_order(sharded, tmp_path) -> None:
    weights = Weights(sharded / "transformer")
    with ShardWriter(layout_of(weights), tmp_path / "out") as writer:
        for entry, raw in reversed(list(raw_of(weights))):
            writer.write(entry, raw)
    before = files_of(sharded / "transformer")
    for name, content in files_of(tmp_path / "out").items():
        assert content == before[name]


def test_every_tensor_comes_once_with_its_bytes(sharded, same_bits) -> None:
    weights = Weights(sharded / "transformer")
    seen = {entry.name: bytes(raw) for entry, raw in raw_of(weights)}
    assert seen.keys() == weights.entries.keys()
    for name, raw in seen.items():
        same_bits(
            torch.frombuffer(bytearray(raw), dtype=torch.bfloat16), weights.read(name).reshape(-1)
        )


def test_other_weights_of_the_denoiser_and_hidden_files_stay_behind(own_pipeline, tmp_path) -> None:
    inside = own_pipeline / "transformer"
    left = [
        inside / f"{STEM}.bin",
        inside / f"{STEM}.fp16.safetensors",
        inside / "ema.pt",
        inside / "ditprune.json",
        own_pipeline / ".git" / "HEAD",
        own_pipeline / ".cache",
    ]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    kept = [inside / "README.md", own_pipeline / "README.md", own_pipeline / "vae" / "note.txt"]
    for file in kept:
        file.write_text("kept", encoding="utf-8")
    model, weights = copy(own_pipeline, tmp_path / "out")
    expected = files_of(own_pipeline)
    for file in left:
        del expected[file.relative_to(own_pipeline).as_posix()]
    assert files_of(tmp_path / "out") == expected
    assert copied_bytes(model, {"transformer": weights}) == sum(map(len, expected.values()))
    assert not set(left) & set(other_files(model, {"transformer": weights}))
    assert not (tmp_path / "executed").exists()


def test_older_weights_in_a_folder_of_the_denoiser_stay_behind(own_pipeline, tmp_path) -> None:
    older = own_pipeline / "transformer" / "checkpoint-1000"
    older.mkdir()
    (older / f"{STEM}.safetensors").write_bytes(b"dense")
    copy(own_pipeline, tmp_path / "out")
    assert not (tmp_path / "out" / "transformer" / older.name).exists()


@pytest.mark.parametrize("max_shard_size", ["60KB", "10GB"])
def test_a_bare_denoiser_keeps_its_config_card_and_index(
    max_shard_size, tiny_dit, tmp_path
) -> None:
    folder = save_denoiser(tiny_dit(), tmp_path / "m", max_shard_size=max_shard_size)
    expected = files_of(folder)
    (folder / f"{STEM}.fp16.safetensors").write_bytes(b"dense")
    copy(folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == expected


def test_links_to_files_become_files(own_pipeline, tmp_path) -> None:
    for file in sorted(own_pipeline.rglob("*.safetensors")):
        file.rename(file.with_suffix(".blob"))
        file.symlink_to(file.with_suffix(".blob").name)
    _, weights = copy(own_pipeline, tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert not file.is_symlink()
        assert file.read_bytes() == (own_pipeline / file.relative_to(tmp_path / "out")).read_bytes()
    assert len(weights.shards) == 1


def test_the_hash_is_sha256() -> None:
    for raw in (b"", b"abc", bytearray(1000)):
        assert sha256(raw) == hashlib.sha256(bytes(raw)).hexdigest()
