"""Pruning a folder: the same bits as in memory, every other byte as it was, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ditprune
import pipeline_parts
from ditprune.checkpoints.locate import locate
from ditprune.errors import ModelError, OutputError, RecipeError
from ditprune.method.words import build
from ditprune.pruning import loop as prune_module
from ditprune.pruning.loop import prune_checkpoint
from folders import STEM, files_of, save_denoiser, save_pipeline, tensors_on_disk
from tiny_denoisers import redraw_

RUNS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "default": (torch.float32, {}),
    "magnitude per layer": (torch.float32, {"saliency": "magnitude", "granularity": "layer"}),
    "2:4": (torch.float32, {"pattern": "2:4"}),
    "own threshold": (torch.float32, {"cag_threshold": 0.3, "sparsity": 0.3}),
    "sharded bf16": (torch.bfloat16, {}),
    "sharded fp16 per channel": (torch.float16, {"granularity": "channel", "saliency": "wanda"}),
    "two kinds of layers": (torch.float32, {"include": ["*.to_q", "*.ff.*"], "exclude": "*.0.*"}),
}


@pytest.fixture(params=RUNS, ids=str)
def made(request, tiny_dit, batches, tmp_path):
    """A run on a folder: (what was asked, the model, the statistics, OUT, the outcome)."""
    dtype, words = RUNS[request.param]
    size = "60KB" if "sharded" in request.param else "10GB"
    folder = save_pipeline(tiny_dit(), tmp_path / "model", dtype=dtype, max_shard_size=size)
    denoiser = tiny_dit().to(dtype).float()
    stats = ditprune.calibrate(denoiser, batches(denoiser), {"seed": 5})
    out = tmp_path / "out"
    outcomes = prune_checkpoint(locate(str(folder)), out, {"any": stats}, build(**words))
    (outcome,) = outcomes.values()
    return words, folder, stats, out, outcome


def inside(folder: Path) -> Path:
    return folder / "transformer"


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((inside(out) / "ditprune.json").read_text(encoding="utf-8"))


def test_the_bits_and_the_outcome_are_those_of_pruning_in_memory(made, tiny_dit, same_bits) -> None:
    words, _, stats, out, outcome = made
    on_disk = tensors_on_disk(inside(out))
    denoiser = tiny_dit().to(next(iter(on_disk.values())).dtype)
    expected = ditprune.prune_(denoiser, stats, **words)
    assert outcome == expected
    state = denoiser.state_dict()
    assert on_disk.keys() == {name for name, _ in denoiser.named_parameters()}
    for name, tensor in on_disk.items():
        same_bits(tensor, state[name])


def test_only_targets_the_manifest_and_the_card_differ(made, same_bits) -> None:
    _, folder, _, out, outcome = made
    before, after = files_of(folder), files_of(out)
    assert after.keys() == before.keys() | {"transformer/ditprune.json", "README.md"}
    changed = {name for name in before if after[name] != before[name]}
    assert changed
    assert all(name.startswith("transformer/") and name.endswith("safetensors") for name in changed)
    for name in changed:
        assert len(before[name]) == len(after[name])
        header = 8 + int.from_bytes(before[name][:8], "little")
        assert before[name][:header] == after[name][:header]
    dense, pruned = tensors_on_disk(inside(folder)), tensors_on_disk(inside(out))
    for name, tensor in dense.items():
        kept = torch.ones(tensor.shape, dtype=torch.bool)
        if name.removesuffix(".weight") in outcome.targets:
            kept = pruned[name] != 0
            assert (~kept).sum() == outcome.targets[name.removesuffix(".weight")].num_pruned
        same_bits(pruned[name][kept], tensor[kept])


def test_the_manifest_tells_what_was_done(made) -> None:
    words, folder, _, out, outcome = made
    claims = manifest_of(out)
    assert claims["recipe"] == build(**words).to_json()
    assert claims["versions"].keys() >= {"ditprune", "torch", "diffusers", "safetensors", "python"}
    assert claims["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(
        claims["versions"]["torch"]
    )
    assert len(claims["base"]["fingerprint"]) == 32
    assert claims["base"]["model"] == "model"
    assert claims["statistics"]["protocol"]["seed"] == 5
    assert list(claims["targets"]) == list(outcome.targets)
    for name, target in outcome.targets.items():
        record = claims["targets"][name]
        assert tuple(record["shape"]) == target.shape
        for key in ("granularity", "num_groups", "g_out", "num_asked", "num_pruned", "num_zero"):
            assert record[key] == getattr(target, key)
    assert claims["totals"] == {
        "num_targets": len(outcome.targets),
        "num_weights": outcome.num_weights,
        "num_pruned": outcome.num_pruned,
        "sparsity": outcome.sparsity,
        "num_parameters": sum(t.numel() for t in tensors_on_disk(inside(folder)).values()),
        "model_sparsity": outcome.model_sparsity,
    }
    assert claims["cag_threshold"] == outcome.cag_threshold


def test_stock_diffusers_loads_it_with_the_zeros_in_place(made) -> None:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    _, _, _, out, outcome = made
    pipeline = DiTPipeline.from_pretrained(out)
    alone = DiTTransformer2DModel.from_pretrained(inside(out))
    for denoiser in (pipeline.transformer, alone):
        for name, target in outcome.targets.items():
            weight = denoiser.get_parameter(f"{name}.weight")
            assert int((weight == 0).sum()) == target.num_zero >= target.num_pruned > 0
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline.to(torch.float32)([1], num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 16, 16, 1)


@pytest.mark.parametrize("form", ["denoiser", "card and variant"])
def test_a_bare_denoiser_is_pruned(form, tiny_dit, tiny_stats, tmp_path, same_bits) -> None:
    variant = {"variant": "fp32"} if form == "card and variant" else {}
    folder = save_denoiser(tiny_dit(), tmp_path / "m", **variant)
    (folder / "README.md").write_text("card", encoding="utf-8")
    (folder / f"{STEM}.bin").write_bytes(b"pickle")
    out = tmp_path / "a" / "b" / "out"
    prune_checkpoint(locate(str(folder)), out, {"any": tiny_stats}, build())
    made = {"ditprune.json", "README.base.md"}
    assert files_of(out).keys() == files_of(folder).keys() - {f"{STEM}.bin"} | made
    assert (out / "README.base.md").read_text(encoding="utf-8") == "card"
    denoiser = tiny_dit()
    ditprune.prune_(denoiser, tiny_stats)
    for name, tensor in tensors_on_disk(out).items():
        same_bits(tensor, denoiser.state_dict()[name])


@pytest.mark.parametrize("words", [{}, {"pattern": "2:4"}, {"saliency": "magnitude"}], ids=str)
def test_the_same_bytes_on_every_run_and_any_number_of_threads(
    words, tiny_pipeline, tiny_stats, tmp_path, with_threads
) -> None:
    def run(number: int) -> dict[str, bytes]:
        out = tmp_path / str(number)
        prune_checkpoint(locate(str(tiny_pipeline)), out, {"any": tiny_stats}, build(**words))
        return files_of(out)

    first = with_threads(1, lambda: run(0))
    assert with_threads(1, lambda: run(1)) == first
    assert with_threads(2, lambda: run(2)) == first


def test_the_model_is_left_as_it_was(tiny_pipeline, tiny_stats, tmp_path) -> None:
    before = files_of(tiny_pipeline)
    prune_checkpoint(locate(str(tiny_pipeline)), tmp_path / "out", {"any": tiny_stats}, build())
    assert files_of(tiny_pipeline) == before


def test_magnitude_needs_no_statistics(tiny_pipeline, tmp_path) -> None:
    model = locate(str(tiny_pipeline))
    prune_checkpoint(model, tmp_path / "out", None, build(saliency="magnitude"))
    assert manifest_of(tmp_path / "out")["statistics"] is None
    with pytest.raises(RecipeError, match="needs the inputs of the layers"):
        prune_checkpoint(model, tmp_path / "other", None, build())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_it_reports_every_tensor(tiny_pipeline, tiny_stats, tmp_path) -> None:
    seen: list[tuple[str, int, int]] = []
    prune_checkpoint(
        locate(str(tiny_pipeline)), tmp_path / "out", {"any": tiny_stats}, build(),
        progress=lambda *args: seen.append(args),
    )  # fmt: skip
    (file,) = (tiny_pipeline / "transformer").glob("*.safetensors")
    num_tensors = len(load_file(file))
    assert seen == [("writing tensors", i, num_tensors) for i in range(1, num_tensors + 1)]


@pytest.mark.parametrize("when", [1, 11, 21, "manifest"])
@pytest.mark.parametrize("failure", [RuntimeError("x"), OSError(28, "full"), OSError(5, "broken")],
                         ids=repr)  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_midway_leaves_no_out_or_the_old_one(
    when, failure, overwrite, tiny_pipeline, tiny_stats, tmp_path, monkeypatch
) -> None:
    model, out, calls = locate(str(tiny_pipeline)), tmp_path / "out", [0]
    if overwrite:
        prune_checkpoint(model, out, {"any": tiny_stats}, build(sparsity=0.1))
    before = files_of(tmp_path)
    name = "write_manifest" if when == "manifest" else "prune_weight_"
    original = getattr(prune_module, name)

    def fail(*args: Any) -> Any:
        calls[0] += 1
        if when in ("manifest", calls[0]):
            raise failure
        return original(*args)

    monkeypatch.setattr(prune_module, name, fail)
    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)):
        prune_checkpoint(model, out, {"any": tiny_stats}, build(), overwrite)
    assert calls[0] == (1 if when == "manifest" else when)
    assert files_of(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([out] if overwrite else [])


def test_a_file_that_would_seem_our_own_is_refused_before_work(
    tiny_dit, tmp_path, monkeypatch
) -> None:
    folder = save_pipeline(tiny_dit(), tmp_path / "model")
    monkeypatch.setattr(prune_module, "_prune_job", lambda *_: pytest.fail("it worked"))
    recipe = build(saliency="magnitude")
    for file in (folder / "vae" / "ditprune.json", folder / "ditprune.json",
                 folder / "vae" / "ditprune-compact.json"):  # fmt: skip
        file.write_text("{}", encoding="utf-8")
        with pytest.raises(ModelError, match=f"{file}: lies beside no denoiser"):
            prune_checkpoint(locate(str(folder)), tmp_path / "out", None, recipe)
        file.unlink()
    for name in ("README.md", "ditprune.png"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        with pytest.raises(ModelError, match=f"{name}: is a folder"):
            prune_checkpoint(locate(str(folder)), tmp_path / "out", None, recipe)
        (folder / name).rmdir()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]


def test_buffers_are_no_parameters_in_memory_or_on_disk(tmp_path) -> None:
    denoiser = redraw_(pipeline_parts.denoiser("SD3Transformer2DModel"), 0)
    denoiser.save_pretrained(tmp_path / "dense")
    assert "pos_embed.pos_embed" in tensors_on_disk(tmp_path / "dense")
    size = sum(parameter.numel() for parameter in denoiser.parameters())
    out = tmp_path / "out"
    assert ditprune.prune(tmp_path / "dense", out, saliency="magnitude").num_parameters == size
    outcome = ditprune.prune_(denoiser, saliency="magnitude")
    denoiser.save_pretrained(tmp_path / "saved")
    outcome.save(tmp_path / "saved")
    for folder in (out, tmp_path / "saved"):
        claims = json.loads((folder / "ditprune.json").read_text(encoding="utf-8"))
        assert claims["totals"]["num_parameters"] == outcome.num_parameters == size
        assert ditprune.verify(folder) == []
