"""Converting: the same bytes come back, what is written is smaller, all else is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune import prune_
from ditprune.checkpoints.compact.compact_folder import CompactWeights, packed_layout
from ditprune.checkpoints.compact.head import Head
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.weights import Weights
from ditprune.errors import ModelError, OutputError
from ditprune.method.words import build
from ditprune.pruning.convert import Converted, to_compact, to_dense
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.verify import false_claims
from folders import (
    STEM,
    add_denoiser,
    edit_header,
    edit_json,
    edit_tensors,
    files_of,
    save_denoiser,
    save_pipeline,
    shards_of,
    tensors_on_disk,
)

NAME = "transformer_blocks.1.attn1.to_q.weight"
MANIFEST = "ditprune-compact.json"


def compact(folder: Path, out: Path, **options: Any) -> dict[str, Converted]:
    return to_compact(locate(str(folder)), out, **options)


def dense(folder: Path, out: Path, **options: Any) -> dict[str, Converted]:
    return to_dense(locate(str(folder)), out, **options)


def one(converted: dict[str, Converted]) -> Converted:
    (only,) = converted.values()
    return only


@pytest.fixture(scope="module")
def make(tiny_dit, tmp_path_factory) -> Callable[..., Path]:
    """Prunes a pipeline around the tiny DiT, once for each set of words."""
    made: dict[str, Path] = {}

    def prune(dtype=torch.bfloat16, max_shard_size="10GB", **words: Any) -> Path:
        words = words or {"sparsity": 0.5}
        key = repr((dtype, max_shard_size, words))
        if key not in made:
            place = tmp_path_factory.mktemp("convert")
            folder = save_pipeline(
                tiny_dit(), place / "model", dtype=dtype, max_shard_size=max_shard_size
            )
            recipe = build(
                saliency="magnitude", granularity=words.pop("granularity", None), **words
            )
            prune_checkpoint(locate(str(folder)), place / "out", None, recipe)
            made[key] = place / "out"
        return made[key]

    return prune


@pytest.fixture
def packed(make, tmp_path) -> Path:
    """A compact denoiser folder, to spoil."""
    compact(make(max_shard_size="60KB") / "transformer", tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize("size", ["10GB", "60KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("words", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=["50 %", "2:4"])
def test_the_same_bytes_come_back(make, size, dtype, words, tmp_path) -> None:
    words = {**words, "granularity": "layer"} if "sparsity" in words else words
    out = make(dtype, size, **words)
    compact(out, tmp_path / "packed")
    dense(tmp_path / "packed", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(out)
    assert len(shards_of(out / "transformer")) > (2 if size == "60KB" else 0)
    assert files_of(tmp_path / "packed") != files_of(out)


@pytest.mark.parametrize(
    ("words", "form", "most"),
    [
        ({"sparsity": 0.5, "granularity": "layer"}, "mask", 0.57),
        ({"sparsity": 0.7, "granularity": "layer"}, "mask", 0.37),
        ({"pattern": "2:4"}, "2:4", 0.57),
        ({"pattern": "4:8"}, "mask", 0.57),
    ],
)
def test_targets_take_what_is_promised_and_a_little_for_their_heads(
    make, words, form, most, tmp_path
) -> None:
    converted = one(compact(make(**words), tmp_path / "packed"))
    assert converted.packed == converted.heads
    assert {head.form for head in converted.heads.values()} == {form}
    # Heads and filling take up to 56 bytes of each; the smallest weight here has 2048.
    extra = 56 * len(converted.packed)
    assert converted.packed_bytes - extra <= most * converted.unpacked_bytes
    on_disk = sum(len(raw) for name, raw in files_of(tmp_path / "packed").items()
                  if name.startswith("transformer") and name.endswith(".safetensors"))  # fmt: skip
    assert on_disk == converted.size_bytes < converted.dense_bytes


def test_signs_of_zero_nan_payloads_and_denormals_come_back(tiny_dit, tmp_path) -> None:
    denoiser = tiny_dit().to(torch.bfloat16)
    prune_(denoiser, saliency="magnitude", granularity="layer", sparsity=0.6)
    special = torch.tensor([-0x8000, 0x7FC1, -1, 0x0001, 0x7F80], dtype=torch.int16)
    denoiser.get_parameter(NAME).data.view(-1)[100:105] = special.view(torch.bfloat16)
    folder = save_denoiser(denoiser, tmp_path / "model", torch.bfloat16)
    converted = one(compact(folder, tmp_path / "packed"))
    assert NAME in converted.packed
    dense(tmp_path / "packed", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)
    found = tensors_on_disk(tmp_path / "again")[NAME].view(torch.int16).view(-1)[100:105]
    assert found.tolist() == special.tolist()


def test_what_does_not_gain_stays_dense_in_the_same_file(tiny_dit, tmp_path) -> None:
    denoiser = tiny_dit()
    prune_(denoiser, saliency="magnitude", sparsity=0.5, granularity="layer", include="*.to_q")
    folder = save_denoiser(denoiser, tmp_path / "model")
    converted = one(compact(folder, tmp_path / "packed"))
    assert set(converted.packed) == {n for n in converted.heads if n.endswith("to_q.weight")}
    before, after = tensors_on_disk(folder), tensors_on_disk(tmp_path / "packed")
    assert before.keys() == after.keys()
    for name in before.keys() - converted.packed:
        assert torch.equal(before[name], after[name])
    assert all(after[name].dtype == torch.uint8 for name in converted.packed)


def test_a_model_that_would_not_gain_is_refused_whole(tiny_pipeline, tmp_path) -> None:
    with pytest.raises(ModelError, match=r"none of its \d+ targets is sparse enough.*1\.\d\d\d of"):
        compact(tiny_pipeline, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_of_two_denoisers_each_gains_or_stays_as_it_is(make, tiny_dit, tmp_path) -> None:
    for pruned_too in (False, True):
        folder = Path(shutil.copytree(make(granularity="layer", sparsity=0.5), tmp_path / "model"))
        second = tiny_dit(1)
        if pruned_too:
            prune_(second, saliency="magnitude", sparsity=0.7, granularity="layer")
        add_denoiser(folder, second, max_shard_size="60KB")
        converted = compact(folder, tmp_path / "packed")
        assert bool(converted["transformer_2"].packed) == pruned_too
        assert (tmp_path / "packed" / "transformer_2" / MANIFEST).exists() == pruned_too
        dense(tmp_path / "packed", tmp_path / "again")
        assert files_of(tmp_path / "again") == files_of(folder)
        for name in ("model", "packed", "again"):
            shutil.rmtree(tmp_path / name)


def test_the_index_is_the_dense_one_and_every_tensor_is_aligned(packed, make) -> None:
    index = f"{STEM}.safetensors.index.json"
    original = make(max_shard_size="60KB") / "transformer" / index
    assert (packed / index).read_bytes() == original.read_bytes()
    for entry in Weights(packed).entries.values():
        item = {"U8": 8, "F32": 4, "BF16": 2}[entry.dtype]
        assert entry.offset % item == 0, entry


def test_numbers_of_all_sizes_are_aligned_whatever_stood_before_them(tmp_path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / f"{STEM}.safetensors"
    tensors = {
        "flag": torch.ones(3, dtype=torch.bool), "wide": torch.ones(2, dtype=torch.float64),
        "packed": torch.ones(8, 9, dtype=torch.bfloat16), "half": torch.ones(3).half(),
        "single": torch.ones(1),
    }  # fmt: skip
    save_file(tensors, file, metadata={"format": "pt", "of": "someone"})
    weights = Weights(tmp_path)
    layout = packed_layout(weights, {"packed": Head("BF16", (8, 9), 10)})
    offsets = {entry.name: entry.offset % 8 for entry in layout.in_order()}
    assert list(offsets) == ["packed", "wide", "single", "half", "flag"]
    assert offsets == {"packed": 0, "wide": 0, "single": 0, "half": 4, "flag": 2}
    header = json.loads(layout.headers[file.name][8:])
    assert header["__metadata__"]["of"] == "someone"
    assert "import ditprune" in header["__metadata__"]["ditprune"]


def test_verify_holds_a_compact_folder(make, packed, tmp_path) -> None:
    compact(make(), tmp_path / "pipeline")
    assert list(false_claims(locate(str(tmp_path / "pipeline")))) == []
    assert list(false_claims(locate(str(packed)))) == []


def test_verify_holds_one_that_was_pruned_without_a_manifest(tiny_dit, tmp_path) -> None:
    denoiser = tiny_dit()
    prune_(denoiser, saliency="magnitude")
    compact(save_denoiser(denoiser, tmp_path / "model"), tmp_path / "packed")
    folder = locate(str(tmp_path / "packed"))
    assert list(false_claims(folder)) == []
    edit_tensors(
        tmp_path / "packed" / f"{STEM}.safetensors", lambda t: t["pos_embed.proj.bias"].add_(1)
    )
    (line,) = false_claims(folder)
    assert line.startswith("pos_embed.proj.bias: its packed bytes are not those")


def shard_with(folder: Path, name: str) -> Path:
    return Weights(folder).entries[name].file


def flip(folder: Path, name: str, at: int) -> None:
    """Change one byte of a tensor."""
    edit_tensors(shard_with(folder, name), lambda tensors: tensors[name][at].bitwise_xor_(1))


def claim(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_json(folder / MANIFEST, change)


def header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the dense header of the shard with NAME."""

    def edit(claims: dict[str, Any]) -> None:
        shard = shard_with(folder, NAME).name
        content = json.loads(claims["headers"][shard])
        change(content)
        claims["headers"][shard] = json.dumps(content)

    claim(folder, edit)


def huge(entry: dict[str, Any]) -> None:
    entry["shape"] = [1 << 40, 1 << 20]


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a value": (lambda f: flip(f, NAME, 60), "packed bytes are not those"),
    "its head": (lambda f: flip(f, NAME, 0), "not a packed weight .begins with"),
    "its shape": (lambda f: flip(f, NAME, 24), "not a packed weight"),
    "its mask": (lambda f: flip(f, NAME, -20), "bits in its mask"),
    "a dense tensor": (
        lambda f: edit_tensors(
            shard_with(f, "proj_out_1.bias"), lambda t: t["proj_out_1.bias"].add_(1)
        ),
        "proj_out_1.bias: its packed bytes",
    ),
    "no manifest's form": (lambda f: (f / MANIFEST).write_text("{"), "cannot be read as JSON"),
    "another format": (lambda f: claim(f, lambda c: c.update(format=2)), "format 2"),
    "no headers": (lambda f: claim(f, lambda c: c.pop("headers")), "headers"),
    "headers of others": (lambda f: claim(f, lambda c: c.update(headers={})), "other shards"),
    "headers that are none": (
        lambda f: claim(f, lambda c: c.update(headers=dict.fromkeys(c["headers"], "{}"))),
        "lists other tensors",
    ),
    "a hash": (
        lambda f: claim(f, lambda c: c["tensors"][NAME].update(dense_sha256="0" * 64)),
        "dense bytes are not those",
    ),
    "a tensor too few": (lambda f: claim(f, lambda c: c["tensors"].pop(NAME)), "other tensors"),
    "a huge shape": (lambda f: header(f, lambda h: huge(h[NAME])), "dense header"),
    "a shape of text": (lambda f: header(f, lambda h: h[NAME].update(shape=["a"])), "dense header"),
    "a dtype": (lambda f: header(f, lambda h: h[NAME].update(dtype="I8")), "dense header"),
    "another dtype": (lambda f: header(f, lambda h: h[NAME].update(dtype="F16")), "expected F16"),
    "a hole": (
        lambda f: header(f, lambda h: h[NAME].update(data_offsets=[1 << 40, (1 << 40) + 2048])),
        "begins at",
    ),
    "no offsets": (lambda f: header(f, lambda h: h[NAME].pop("data_offsets")), "data_offsets"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED, ids=str)
def test_a_spoiled_compact_folder_is_refused_and_verify_says_so(packed, case, tmp_path) -> None:
    spoil, match = SPOILED[case]
    spoil(packed)
    with pytest.raises(ModelError, match=match):
        dense(packed, tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]
    lines = list(false_claims(locate(str(packed))))
    assert any(re.search(match, line) for line in lines), lines


def test_verify_sees_a_config_that_is_not_ours(packed) -> None:
    edit_json(packed / "config.json", lambda config: config.update(num_layers=4))
    assert "config.json: is not the dense model's with our name in it" in list(
        false_claims(locate(str(packed)))
    )


def test_a_folder_goes_one_way_only(packed, make, tmp_path) -> None:
    with pytest.raises(ModelError, match="is compact already"):
        compact(packed, tmp_path / "out")
    with pytest.raises(ModelError, match="is not compact"):
        dense(make(), tmp_path / "out")


def test_places_that_cannot_be_written_are_refused_before_anything_is_read(make, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for overwrite, match in ((False, "exists"), (True, "not a folder that ditprune wrote")):
        with pytest.raises(OutputError, match=match):
            compact(make(), tmp_path / "out", overwrite=overwrite, progress=_never)


def _never(*_: object) -> None:
    raise AssertionError("read something")


def test_a_compact_folder_is_ours_to_overwrite(packed, make) -> None:
    before = files_of(packed)
    compact(make(max_shard_size="60KB") / "transformer", packed, overwrite=True)
    assert files_of(packed) == before


def test_tensors_outside_the_targets_may_be_of_any_type(tiny_dit, tmp_path) -> None:
    denoiser = tiny_dit()
    prune_(denoiser, saliency="magnitude", sparsity=0.7)
    folder = save_denoiser(denoiser, tmp_path / "model")
    extra = {"extra.bytes": torch.arange(5, dtype=torch.uint8), "extra.flag": torch.tensor(True)}
    edit_tensors(folder / f"{STEM}.safetensors", lambda tensors: tensors.update(extra))
    compact(folder, tmp_path / "packed")
    assert CompactWeights(tmp_path / "packed").entries.keys() == Weights(folder).entries.keys()
    dense(tmp_path / "packed", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)


def test_a_header_that_others_wrote_comes_back_as_it_was(tiny_dit, tmp_path) -> None:
    """Order, spaces and metadata of the JSON included."""
    denoiser = tiny_dit()
    prune_(denoiser, saliency="magnitude", sparsity=0.7)
    folder = save_denoiser(denoiser, tmp_path / "model")

    def turn(content: dict[str, Any]) -> None:
        items = list(content.items())[::-1]
        content.clear()
        content.update(items, __metadata__={"format": "pt", "who": "é"})

    edit_header(folder / f"{STEM}.safetensors", turn)
    compact(folder, tmp_path / "packed")
    dense(tmp_path / "packed", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)


def test_a_manifest_that_links_out_of_the_model_is_refused(make, tmp_path) -> None:
    """As any other file that would be copied; one that links within it is copied."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    folder = Path(shutil.copytree(make(), tmp_path / "model"))
    own = folder / "transformer" / "ditprune.json"
    content = own.read_bytes()
    own.rename(folder / "moved.json")
    own.symlink_to("../moved.json")
    compact(folder, tmp_path / "small")
    assert (tmp_path / "small" / "transformer" / "ditprune.json").read_bytes() == content
    for name, convert in (("model", compact), ("small", dense)):
        link = tmp_path / name / "transformer" / "ditprune.json"
        link.unlink()
        link.symlink_to(secret)
        with pytest.raises(ModelError, match=r"ditprune\.json: links to .*secret\.txt, outside"):
            convert(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_card_says_how_the_folder_loads_and_what_was_measured(make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make(sparsity=0.7), tmp_path / "pruned"))
    before = (folder / "README.md").read_text(encoding="utf-8")
    before = re.sub("Not measured yet.*", "**close to dense: SSIM 0.97.**", before)
    (folder / "README.md").write_text(before, encoding="utf-8")
    assert "stock diffusers loads it" in before
    compact(folder, tmp_path / "small")
    small = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert "with ditprune imported, diffusers loads it" in small
    assert "import ditprune" in small
    assert "stock diffusers loads it" not in small
    assert "**close to dense: SSIM 0.97.**" in small
    dense(tmp_path / "small", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)
