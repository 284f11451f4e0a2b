"""Reading safetensors shards: what the library reads, and no half or foreign file."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.weights import Weights
from ditprune.errors import DitpruneError, ModelError
from ditprune.method.words import build
from ditprune.pruning.job import open_jobs, plan_jobs
from ditprune.pruning.plan import Plan
from folders import STEM, Payload, edit_header, edit_json, save_denoiser, shards_of, tensors_on_disk

INDEX = f"{STEM}.safetensors.index.json"
NAME = "transformer_blocks.1.ff.net.2.weight"


def plan_of(folder: Path) -> Plan:
    """What would be done to a bare denoiser folder."""
    jobs = open_jobs(ModelFolder("m", folder, {"d": folder}), None, build())
    return plan_jobs(jobs)["d"]


@pytest.fixture
def sharded(tiny_dit, tmp_path) -> Path:
    """A bf16 folder of several shards."""
    return save_denoiser(tiny_dit(), tmp_path / "m", torch.bfloat16, max_shard_size="60KB")


@pytest.fixture
def single(tiny_dit, tmp_path) -> Path:
    """A float32 folder of one file."""
    return save_denoiser(tiny_dit(), tmp_path / "m")


def refused(folder: Path, match: str) -> str:
    """The message of the refusal, one line, naming the folder."""
    with pytest.raises(ModelError, match=match) as caught:
        Weights(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("max_shard_size", ["60KB", "10GB"])
def test_the_entries_are_what_safetensors_reads(
    dtype, max_shard_size, tiny_dit, tmp_path, same_bits
) -> None:
    folder = save_denoiser(tiny_dit(), tmp_path / "m", dtype, max_shard_size=max_shard_size)
    weights = Weights(folder)
    expected = tensors_on_disk(folder)
    assert sorted(weights.shards) == shards_of(folder)
    assert (len(weights.shards) > 2) == (max_shard_size == "60KB")
    assert weights.index == (folder / INDEX if max_shard_size == "60KB" else None)
    assert weights.entries.keys() == expected.keys()
    for name, tensor in expected.items():
        entry = weights.entries[name]
        assert (entry.name, entry.shape) == (name, tuple(tensor.shape))
        assert entry.size_bytes == tensor.numel() * tensor.element_size()
        with safe_open(entry.file, framework="pt") as stream:
            same_bits(weights.read(name), stream.get_tensor(name))
    assert weights.num_parameters == sum(t.numel() for t in expected.values())
    assert weights.num_parameters == sum(p.numel() for p in tiny_dit().parameters())
    assert weights.size_bytes == sum(f.stat().st_size for f in shards_of(folder))


def test_a_shard_lists_its_own_entries_by_offset(sharded) -> None:
    weights = Weights(sharded)
    seen: list[str] = []
    for shard in weights.shards:
        entries = weights.in_shard(shard)
        assert [e.offset for e in entries] == sorted(e.offset for e in entries)
        assert {e.file for e in entries} == {shard}
        assert entries[-1].offset + entries[-1].size_bytes == shard.stat().st_size
        seen += [e.name for e in entries]
    assert sorted(seen) == sorted(weights.entries)


@pytest.mark.parametrize(("start", "count"), [(0, 4096), (17, 100), (4000, 96), (4095, 1)])
def test_a_slice_is_a_run_of_the_flat_tensor(start, count, sharded, same_bits) -> None:
    weights = Weights(sharded)
    whole = tensors_on_disk(sharded)[NAME].reshape(-1)
    same_bits(weights.read_slice(NAME, start, count), whole[start : start + count])


def test_opening_reads_no_weights(single, monkeypatch) -> None:
    monkeypatch.setattr("ditprune.checkpoints.weights.read_range", lambda *_: pytest.fail("read"))
    assert NAME in Weights(single).entries


def test_tensors_of_no_and_one_element_are_read(tmp_path, same_bits) -> None:
    tensors = {"one": torch.tensor(3.5), "row": torch.arange(3.0)}
    save_file(tensors, tmp_path / f"{STEM}.safetensors")
    for name, tensor in tensors.items():
        same_bits(Weights(tmp_path).read(name), tensor)


@pytest.mark.parametrize("num_bytes", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(num_bytes, single) -> None:
    file = single / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    assert "fetch it again" in refused(single, "not a complete safetensors file")


def test_a_truncated_shard_is_refused_by_name(sharded) -> None:
    file = shards_of(sharded)[1]
    file.write_bytes(file.read_bytes()[:-7])
    refused(sharded, f"{re.escape(file.name)}: not a complete")


@pytest.mark.parametrize("length", [0, 3, 1 << 20, (1 << 64) - 1])
def test_a_lying_header_length_is_refused(length, single) -> None:
    file = single / f"{STEM}.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    refused(single, "not a complete safetensors file")


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00" * 64, b"hello" * 100, b"\x80\x02}q\x00.", b"PK\x03\x04" * 9]
)
def test_garbage_is_refused(garbage, single) -> None:
    (single / f"{STEM}.safetensors").write_bytes(garbage)
    refused(single, "not a complete safetensors file")


def test_a_header_that_points_outside_the_data_is_refused(single) -> None:
    def lie(header) -> None:
        begin, end = header[NAME]["data_offsets"]
        header[NAME]["data_offsets"] = [begin + 10**9, end + 10**9]

    edit_header(single / f"{STEM}.safetensors", lie)
    refused(single, "not a complete safetensors file")


def test_a_file_that_shrinks_after_opening_is_refused(single) -> None:
    weights = Weights(single)
    file = single / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[: weights.entries[NAME].offset + 5])
    with pytest.raises(ModelError, match=r"ends .* bytes early"):
        weights.read(NAME)


def test_a_missing_shard_is_refused_by_name(sharded) -> None:
    file = shards_of(sharded)[2]
    file.unlink()
    refused(sharded, f"shard {re.escape(file.name)} is missing")


@pytest.mark.parametrize("escape", ["../x.safetensors", "sub/x.safetensors", "..", "", 7, None])
def test_an_index_may_name_plain_files_only(escape, sharded) -> None:
    shutil.copy(shards_of(sharded)[0], sharded.parent / "x.safetensors")
    (sharded / "sub").mkdir()
    shutil.copy(shards_of(sharded)[0], sharded / "sub" / "x.safetensors")
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({NAME: escape}))
    refused(sharded, "expected a plain file name")


def test_an_index_may_not_name_an_absolute_path(sharded) -> None:
    outside = sharded.parent / "x.safetensors"
    shutil.copy(shards_of(sharded)[0], outside)
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({NAME: str(outside)}))
    refused(sharded, "expected a plain file name")


@pytest.mark.parametrize("shard", [["a"], {"a": 1}])
def test_an_index_with_containers_for_names_is_refused(shard, sharded) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({NAME: shard}))
    refused(sharded, "expected a plain file name")


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map_is_refused(weight_map, sharded) -> None:
    edit_json(sharded / INDEX, lambda index: index.update(weight_map=weight_map))
    refused(sharded, "no 'weight_map'")


def test_an_index_that_is_no_json_is_refused(sharded) -> None:
    (sharded / INDEX).write_text("{", encoding="utf-8")
    refused(sharded, "cannot be read as JSON")


@pytest.mark.parametrize("form", ["single", "sharded"])
def test_a_link_out_of_the_model_is_refused(form, request) -> None:
    folder = request.getfixturevalue(form)
    shard = shards_of(folder)[0]
    outside = folder.parent / "elsewhere.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    refused(folder, "outside the model")


def test_a_link_within_the_model_is_followed(single, same_bits) -> None:
    shard = shards_of(single)[0]
    expected = tensors_on_disk(single)[NAME]
    shard.rename(single / "blob")
    shard.symlink_to("blob")
    same_bits(Weights(single).read(NAME), expected)


@pytest.mark.parametrize("place", ["blobs", "other"])
def test_the_links_of_the_hub_cache_are_followed_and_no_others(place, single, same_bits) -> None:
    repository = single.parent / "models--a--b"
    snapshot = repository / "snapshots" / "0a1b2c" / "transformer"
    snapshot.mkdir(parents=True)
    (repository / place).mkdir()
    expected = tensors_on_disk(single)[NAME]
    for number, file in enumerate(sorted(single.iterdir())):
        blob = repository / place / f"hash{number}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../..") / place / blob.name)
    if place == "blobs":
        same_bits(Weights(snapshot).read(NAME), expected)
    else:
        refused(snapshot, "outside the model")


def test_a_tensor_in_two_shards_is_refused(sharded) -> None:
    first, second = shards_of(sharded)[:2]
    tensors = {**tensors_in(second), **dict(list(tensors_in(first).items())[:1])}
    save_file(tensors, second, metadata={"format": "pt"})
    refused(sharded, "is also in .*expected each tensor once")


def tensors_in(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118


def test_a_tensor_listed_in_another_shard_is_refused(sharded) -> None:
    def swap(index) -> None:
        others = set(index["weight_map"].values()) - {index["weight_map"][NAME]}
        index["weight_map"][NAME] = min(others)

    edit_json(sharded / INDEX, swap)
    assert NAME in refused(sharded, "fetch the model again")


def test_a_tensor_that_is_listed_nowhere_is_refused(sharded) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(NAME))
    assert NAME in refused(sharded, "is not listed")


def test_a_listed_tensor_that_is_nowhere_is_refused(sharded) -> None:
    shard = shards_of(sharded)[0].name
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update(ghost=shard))
    refused(sharded, "tensor 'ghost' is not in")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_a_pickle_is_refused_and_never_loaded(suffix, single, tmp_path) -> None:
    mark = tmp_path / "executed"
    shards_of(single)[0].unlink()
    (single / f"{STEM}{suffix}").write_bytes(pickle.dumps(Payload(mark)))
    message = refused(single, "pickle")
    assert f"{STEM}{suffix}" in message
    assert not mark.exists()
    with (single / f"{STEM}{suffix}").open("rb") as stream:
        pickle.load(stream).close()
    assert mark.exists(), "the payload itself is dud"


def test_a_folder_without_weights_is_refused(single) -> None:
    shards_of(single)[0].unlink()
    refused(single, "expected safetensors weights")


@pytest.mark.parametrize("max_shard_size", ["60KB", "10GB"])
def test_the_only_variant_is_taken(max_shard_size, tiny_dit, tmp_path, same_bits) -> None:
    folder = save_denoiser(
        tiny_dit(), tmp_path / "m", torch.float16, variant="fp16", max_shard_size=max_shard_size
    )
    assert all("fp16" in shard.name for shard in shards_of(folder))
    same_bits(Weights(folder).read(NAME), tensors_on_disk(folder)[NAME])


def test_several_variants_are_refused_and_the_plain_one_goes_first(single, same_bits) -> None:
    file = shards_of(single)[0]
    expected = tensors_on_disk(single)[NAME]
    for variant in ("fp16", "ema"):
        save_file({NAME: torch.zeros(2)}, single / f"{STEM}.{variant}.safetensors")
    same_bits(Weights(single).read(NAME), expected)
    file.unlink()
    message = refused(single, "several variants")
    assert "fp16" in message
    assert "ema" in message


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_dtype_without_arithmetic_is_refused_for_a_target(dtype, single) -> None:
    file = shards_of(single)[0]
    save_file(tensors_in(file) | {NAME: torch.zeros(32, 128).to(dtype)}, file)
    weights = Weights(single)
    with pytest.raises(ModelError, match=f"{re.escape(NAME)} is stored as .*convert"):
        weights.read(NAME)
    with pytest.raises(DitpruneError, match="is stored as"):
        plan_of(single)


def test_a_dtype_without_arithmetic_elsewhere_does_no_harm(single) -> None:
    file = shards_of(single)[0]
    save_file(tensors_in(file) | {"counter": torch.zeros(3, dtype=torch.int8)}, file)
    plan = plan_of(single)
    assert len(plan.targets) == 21


@pytest.mark.parametrize("spoil", ["missing", "shape"])
def test_a_target_that_the_config_has_and_the_weights_have_not_is_refused(spoil, single) -> None:
    file = shards_of(single)[0]
    tensors = tensors_in(file)
    if spoil == "missing":
        del tensors[NAME]
    else:
        tensors[NAME] = tensors[NAME].T.contiguous()
    save_file(tensors, file)
    with pytest.raises(ModelError, match=re.escape(NAME)) as caught:
        plan_of(single)
    assert ("not in the weights" in str(caught.value)) == (spoil == "missing")
    assert ("[128, 32]" in str(caught.value)) == (spoil == "shape")


def test_the_index_is_read_as_written(sharded) -> None:
    weight_map = json.loads((sharded / INDEX).read_text(encoding="utf-8"))["weight_map"]
    assert {n: e.file.name for n, e in Weights(sharded).entries.items()} == weight_map
