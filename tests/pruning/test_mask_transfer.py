"""Masks of a pruned folder: onto a fine-tune, back after a LoRA, and never onto another model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ditprune.checkpoints.compact.mask_bits import compressed, expanded
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.mask_file import MaskFile
from ditprune.errors import ModelError, OutputError
from ditprune.method.words import build
from ditprune.pruning.convert import to_compact
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.mask_transfer import apply_masks, extract_masks, filled_in
from ditprune.pruning.verify import false_claims
from folders import (
    STEM,
    add_denoiser,
    edit_json,
    edit_tensors,
    files_of,
    save_denoiser,
    save_pipeline,
    tensors_on_disk,
)

NAME = "transformer_blocks.1.attn1.to_q"


@pytest.fixture(scope="module")
def pruned(tiny_dit, tmp_path_factory) -> Path:
    """The tiny pipeline in shards, pruned by magnitude and CAG; never changed by a test."""
    place = tmp_path_factory.mktemp("masking")
    model = save_pipeline(tiny_dit(), place / "model", max_shard_size="100KB")
    recipe = build(saliency="magnitude", sparsity=0.6)
    prune_checkpoint(locate(str(model)), place / "pruned", None, recipe)
    return place / "pruned"


@pytest.fixture(scope="module")
def mask(pruned) -> Path:
    file = pruned.parent / "mask.safetensors"
    extract_masks(locate(str(pruned)), file)
    return file


@pytest.fixture
def tuned(tiny_dit, tmp_path) -> Path:
    """A fine-tune of the same base, in half precision and one file."""
    denoiser = tiny_dit()
    with torch.no_grad():
        for seed, parameter in enumerate(denoiser.parameters()):
            generator = torch.Generator().manual_seed(seed)
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return save_pipeline(denoiser, tmp_path / "tuned", dtype=torch.bfloat16)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ditprune.json").read_text())


def test_the_mask_of_a_base_prunes_a_fine_tune_of_it(pruned, mask, tuned, tmp_path) -> None:
    (outcome,) = apply_masks(locate(str(tuned)), MaskFile(mask), tmp_path / "out").values()
    weights, before, after = (
        tensors_on_disk(folder / "transformer") for folder in (pruned, tuned, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    for name, weight in after.items():
        is_target = name.removesuffix(".weight") in outcome.targets
        keep = weights[name] != 0 if is_target else torch.ones_like(weight, dtype=torch.bool)
        assert torch.equal(weight, torch.where(keep, before[name], 0)), name
        assert weight.dtype == torch.bfloat16
    assert outcome.sparsity == pytest.approx(0.6, abs=0.01)


def test_what_it_writes_is_verified_and_says_where_it_is_from(
    pruned, mask, tuned, tmp_path
) -> None:
    out = tmp_path / "out"
    apply_masks(locate(str(tuned)), MaskFile(mask), out)
    assert list(false_claims(locate(str(out)))) == []
    told, origin = manifest_of(out / "transformer"), manifest_of(pruned / "transformer")
    assert told["recipe"] == origin["recipe"]
    assert told["mask"]["base"] == origin["base"]
    assert told["base"]["model"] == "tuned"
    assert told["base"]["fingerprint"] != origin["base"]["fingerprint"]
    edit_tensors(
        out / "transformer" / f"{STEM}.safetensors", lambda t: t[f"{NAME}.weight"].fill_(1)
    )
    assert any(line.startswith(NAME) for line in false_claims(locate(str(out))))


def test_the_mask_of_a_model_gives_it_back(pruned, mask, tmp_path) -> None:
    """Applied to its own dense model it is the pruned one, but for the note and the card."""
    apply_masks(locate(str(pruned.parent / "model")), MaskFile(mask), tmp_path / "out")
    after, before = files_of(tmp_path / "out"), files_of(pruned)
    name = "transformer/ditprune.json"
    told, origin = (json.loads(files.pop(name)) for files in (after, before))
    told.pop("mask")
    before.pop("README.md")
    assert after == before
    assert told == origin


def test_it_takes_a_bit_a_weight_at_most(pruned, mask) -> None:
    num_weights, size_bytes = extract_masks(locate(str(pruned)), mask.with_name("again"))
    assert size_bytes == mask.stat().st_size
    with safe_open(mask, framework="pt") as stream:
        packed = sum(stream.get_tensor(key).numel() for key in stream.keys())  # noqa: SIM118
    assert packed <= num_weights / 8
    assert mask.read_bytes() == mask.with_name("again").read_bytes()


def test_a_compact_folder_has_the_same_mask(pruned, mask, tmp_path) -> None:
    to_compact(locate(str(pruned)), tmp_path / "small")
    extract_masks(locate(str(tmp_path / "small")), tmp_path / "mask")
    assert (tmp_path / "mask").read_bytes() == mask.read_bytes()


def fuse_lora(folder: Path, names: list[str], rank: int = 2) -> None:
    """W += B A, as fusing a LoRA does."""
    for file in sorted(folder.glob("*.safetensors")):

        def fuse(tensors: dict[str, torch.Tensor]) -> None:
            for name in names:
                if f"{name}.weight" in tensors:
                    weight = tensors[f"{name}.weight"]
                    torch.manual_seed(0)
                    change = torch.randn(len(weight), rank) @ torch.randn(rank, weight.shape[1])
                    weight += 0.01 * change

        edit_tensors(file, fuse)


def test_a_check_says_what_a_fused_lora_filled_in_and_applying_undoes_it(
    pruned, mask, tmp_path
) -> None:
    folder = Path(shutil.copytree(pruned, tmp_path / "model"))
    (clean,) = filled_in(locate(str(folder)), MaskFile(mask)).values()
    assert not any(one.num_filled for one in clean.values())
    fuse_lora(folder / "transformer", [NAME])
    (found,) = filled_in(locate(str(folder)), MaskFile(mask)).values()
    weight = tensors_on_disk(pruned / "transformer")[f"{NAME}.weight"]
    assert found[NAME].num_zero == found[NAME].num_filled == int((weight == 0).sum())
    assert found[NAME].share == 1
    assert {name for name, one in found.items() if one.num_filled} == {NAME}
    apply_masks(locate(str(folder)), MaskFile(mask), tmp_path / "out")
    (again,) = filled_in(locate(str(tmp_path / "out")), MaskFile(mask)).values()
    assert not any(one.num_filled for one in again.values())
    assert list(false_claims(locate(str(tmp_path / "out")))) == []


def test_a_bare_denoiser_takes_the_mask_of_a_pipeline(mask, tuned, tmp_path) -> None:
    apply_masks(locate(str(tuned / "transformer")), MaskFile(mask), tmp_path / "out")
    assert list(false_claims(locate(str(tmp_path / "out")))) == []


def test_two_denoisers_have_a_mask_each_and_one_without_is_copied(tiny_dit, tmp_path) -> None:
    model = save_pipeline(tiny_dit(), tmp_path / "model")
    add_denoiser(model, tiny_dit(1))
    prune_checkpoint(locate(str(model)), tmp_path / "pruned", None, build(saliency="magnitude"))
    extract_masks(locate(str(tmp_path / "pruned")), tmp_path / "both")
    apply_masks(locate(str(model)), MaskFile(tmp_path / "both"), tmp_path / "out")
    assert list(false_claims(locate(str(tmp_path / "out")))) == []
    (tmp_path / "pruned" / "transformer" / "ditprune.json").unlink()
    extract_masks(locate(str(tmp_path / "pruned")), tmp_path / "one")
    third = add_denoiser(model, tiny_dit(2), "transformer_3")
    assert apply_masks(
        locate(str(model)), MaskFile(tmp_path / "one"), tmp_path / "out2"
    ).keys() == {"transformer_2"}
    assert files_of(tmp_path / "out2" / "transformer_3") == files_of(third)
    (tmp_path / "pruned" / "transformer_2" / "ditprune.json").unlink()
    with pytest.raises(ModelError, match=r"no ditprune\.json"):
        extract_masks(locate(str(tmp_path / "pruned")), tmp_path / "none")
    shutil.rmtree(model / "transformer_3")
    edit_json(model / "model_index.json", lambda index: index.pop("transformer_3"))
    rename(model, "transformer_2", "other")
    with pytest.raises(ModelError, match="has masks of transformer_2, the model has transformer"):
        apply_masks(locate(str(model)), MaskFile(tmp_path / "one"), tmp_path / "out3")


def rename(pipeline: Path, old: str, new: str) -> None:
    (pipeline / old).rename(pipeline / new)
    edit_json(pipeline / "model_index.json", lambda index: index.update({new: index.pop(old)}))


def test_a_stopped_run_goes_on_with_its_counts(pruned, mask, tmp_path) -> None:
    model = locate(str(pruned.parent / "model"))

    def stop(what: str, done: int, total: int) -> None:
        if what == "writing tensors" and done == total // 2:
            raise KeyboardInterrupt

    written: list[int] = []

    def count(what: str, done: int, total: int) -> None:
        written.extend([total] if what == "writing tensors" else [])

    with pytest.raises(KeyboardInterrupt):
        apply_masks(model, MaskFile(mask), tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    apply_masks(model, MaskFile(mask), tmp_path / "out", progress=count)
    assert 0 < len(written) <= written[0] // 2 + 1
    apply_masks(model, MaskFile(mask), tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    with pytest.raises(OutputError, match="exists"):
        apply_masks(model, MaskFile(mask), tmp_path / "out")


def test_a_folder_that_changed_since_is_not_extracted(pruned, tmp_path) -> None:
    folder = Path(shutil.copytree(pruned, tmp_path / "model"))
    fuse_lora(folder / "transformer", [NAME])
    with pytest.raises(ModelError, match=rf"{NAME} has 0 zeros, its ditprune.json says \d+"):
        extract_masks(locate(str(folder)), tmp_path / "mask")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_models_of_other_sizes_are_refused(mask, tmp_path) -> None:
    from diffusers import DiTTransformer2DModel

    def saved(name: str, **words: int) -> str:
        words = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, **words}
        denoiser = DiTTransformer2DModel(
            in_channels=4, out_channels=4, sample_size=8, patch_size=2, **words
        )
        return str(save_denoiser(denoiser, tmp_path / name))

    for name, words, match in (
        ("wide", {"num_attention_heads": 4}, r"norm1.linear.weight is \[384, 64\], its mask"),
        ("short", {"num_layers": 2}, "has no 'transformer_blocks.2"),
    ):
        folder = locate(saved(name, **words))
        with pytest.raises(ModelError, match=match):
            apply_masks(folder, MaskFile(mask), tmp_path / "out")
        with pytest.raises(ModelError, match=match):
            filled_in(folder, MaskFile(mask))


def test_a_compact_model_is_refused_with_the_way_back(pruned, mask, tmp_path) -> None:
    to_compact(locate(str(pruned)), tmp_path / "small")
    for work in (
        lambda: apply_masks(locate(str(tmp_path / "small")), MaskFile(mask), tmp_path / "out"),
        lambda: filled_in(locate(str(tmp_path / "small")), MaskFile(mask)),
    ):
        with pytest.raises(ModelError, match="convert FOLDER --to dense"):
            work()


def change(file: Path, records: Callable[[dict[str, Any]], Any]) -> None:
    """Change the metadata of a mask file."""
    with safe_open(file, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        content = json.loads(stream.metadata()["ditprune.mask"])
    records(content)
    save_file(tensors, file, metadata={"ditprune.mask": json.dumps(content)})


def record(content: dict[str, Any]) -> dict[str, Any]:
    return content["denoisers"]["transformer"]["targets"][NAME]


KEY = f"transformer/{NAME}"


def turn(tensors: dict[str, torch.Tensor]) -> None:
    """The mask with its bytes in another order."""
    bits = expanded(tensors[KEY].numpy().data, 1024, KEY)
    tensors[KEY] = torch.tensor(list(compressed(bits[::-1].copy())), dtype=torch.uint8)


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda f: f.unlink(), "no such mask file"),
    "no safetensors": (lambda f: f.write_bytes(b"PK"), "not a complete safetensors file"),
    "another file": (lambda f: save_file({"a": torch.ones(1)}, f), "not a mask file"),
    "another format": (lambda f: change(f, lambda c: c.update(format=7)), "format 7"),
    "no denoisers": (lambda f: change(f, lambda c: c.update(denoisers={})), "of different targets"),
    "a list": (lambda f: change(f, lambda c: c.update(denoisers=[1])), "not a mask file"),
    "no shape": (lambda f: change(f, lambda c: record(c).pop("shape")), "'shape'"),
    "a shape of text": (lambda f: change(f, lambda c: record(c).update(shape="ab")), "the shape"),
    "a shape below 0": (lambda f: change(f, lambda c: record(c).update(shape=[-2, 2])), "shape"),
    "a huge shape": (
        lambda f: change(f, lambda c: record(c).update(shape=[1 << 40, 1 << 40])), "its mask",
    ),
    "another shape": (lambda f: change(f, lambda c: record(c).update(shape=[16, 64])), "its mask"),
    "a tensor too few": (lambda f: edit(f, lambda t: t.pop(KEY)), "of different targets"),
    "a tensor too many": (
        lambda f: edit(f, lambda t: t.update(x=torch.ones(1))), "of different targets",
    ),
    "another mask": (
        lambda f: edit(f, lambda t: t.update({KEY: torch.full((128,), 85, dtype=torch.uint8)})),
        "not the mask that was extracted",
    ),
    "as many zeros elsewhere": (lambda f: edit(f, turn), "not the mask that was extracted"),
    "bytes of noise": (
        lambda f: edit(f, lambda t: t.update({KEY: torch.arange(40, dtype=torch.uint8)})),
        "not the mask of its target",
    ),
    "another recipe": (
        lambda f: change(f, lambda c: c["denoisers"]["transformer"].update(recipe={"a": 1})),
        "records cannot be read",
    ),
    "an unknown field": (lambda f: change(f, lambda c: record(c).update(x=1)), "cannot be read"),
    "no count of zeros": (lambda f: change(f, lambda c: record(c).pop("num_zero")), "num_zero"),
    "zeros of text": (
        lambda f: change(f, lambda c: record(c).update(num_zero="1")), "has '1' zeros among",
    ),
    "more zeros than weights": (
        lambda f: change(f, lambda c: record(c).update(num_zero=1025)), "has 1025 zeros among 1024",
    ),
    "another count of zeros": (
        lambda f: change(f, lambda c: record(c).update(num_zero=1)),
        "not the mask that was extracted",
    ),
    "no base": (
        lambda f: change(f, lambda c: c["denoisers"]["transformer"].pop("base")), "has no 'base'",
    ),
    "a base of text": (
        lambda f: change(f, lambda c: c["denoisers"]["transformer"].update(base="x")), "the base",
    ),
    "no recipe": (
        lambda f: change(f, lambda c: c["denoisers"]["transformer"].pop("recipe")),
        "has no 'recipe'",
    ),
}  # fmt: skip


NOT_LOOKED_AT = {"another recipe", "an unknown field"}  # by a check, which asks for zeros only


def edit(file: Path, tensors_change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a mask file."""
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    tensors_change(tensors)
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_hostile_mask_files_are_refused(case, mask, tuned, tmp_path) -> None:
    spoil, match = HOSTILE[case]
    file = Path(shutil.copy(mask, tmp_path / "mask"))
    spoil(file)
    with pytest.raises(ModelError, match=match) as refused:
        apply_masks(locate(str(tuned)), MaskFile(file), tmp_path / "out")
    assert re.search("extract|mask", str(refused.value))
    assert {path.name for path in tmp_path.iterdir()} <= {"mask", "tuned"}
    if case not in NOT_LOOKED_AT:
        with pytest.raises(ModelError, match=match):
            filled_in(locate(str(tuned)), MaskFile(file))
