"""Pipelines and denoisers in memory: the same numbers as from folders, and nothing is changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ditprune
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_denoiser, load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.errors import DitpruneError, ModelError, RecipeError
from ditprune.evaluation import drawing
from ditprune.evaluation.evaluate import evaluate
from ditprune.evaluation.in_memory import digest
from folders import files_of
from tiny_pipelines import PIPELINES
from two_denoisers import TwoDenoisersPipeline, two_denoisers

SMALL: dict[str, Any] = {
    "num_images": 6, "num_inference_steps": 4, "guidance_scale": 1.5, "num_held_out": 6,
    "batch_size": 4,
}  # fmt: skip
NAMES = ("transformer", "transformer_2")


def load(folder: Path, kind: Any = None) -> Any:
    from diffusers import DiTPipeline

    pipeline = (kind or DiTPipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pruned_copy(pipeline: Any, names: tuple[str, ...] = NAMES[:1]) -> Any:
    """A pipeline that shares all but its denoisers, which are pruned."""
    parts = {name: copy.deepcopy(pipeline.components[name]) for name in names}
    for module in parts.values():
        ditprune.prune_(module, None, saliency="magnitude", sparsity=0.6)
    return type(pipeline)(**pipeline.components | parts)


@pytest.fixture
def dense(tiny_pipeline) -> Any:
    return load(tiny_pipeline)


@pytest.fixture
def half(dense) -> Any:
    return pruned_copy(dense)


def comparable(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The models without what differs between a file and memory: headers, seconds."""
    models = json.loads(json.dumps(results["models"]))
    for row in models:
        assert row["accounting"].pop("seconds_per_image") > 0
        row["accounting"].pop("peak_memory_bytes")
        assert row["accounting"].pop("size_bytes") > 0
    return models


def test_memory_and_folders_give_the_same_numbers(tiny_pipeline, dense, half, tmp_path) -> None:
    half.save_pretrained(tmp_path / "half")
    stored = evaluate(tiny_pipeline, [tmp_path / "half"], tmp_path / "e", **SMALL)
    rows = comparable(stored)
    assert rows[1]["sparsity_asked"] is None
    assert rows[1]["sparsity"] == pytest.approx(0.6, abs=0.02)
    assert 0 < rows[1]["metrics"]["relative_error"]["value"] < 2
    crossings = {
        "both": (dense, half),
        "module": (dense, half.transformer),
        "dense": (dense, tmp_path / "half"),
        "pruned": (tiny_pipeline, half),
        "pruned module": (str(tiny_pipeline), half.transformer),
    }
    for name, (one, other) in crossings.items():
        results = evaluate(one, {"half": other}, tmp_path / name, **SMALL)
        assert comparable(results) == rows, name
        assert results["gallery"] == stored["gallery"], name
        assert files_of(tmp_path / name)["grid.png"] == files_of(tmp_path / "e")["grid.png"]
    both = json.loads((tmp_path / "both" / "results.json").read_text(encoding="utf-8"))
    assert both["protocol"]["dense"] == "DiTPipeline in memory"
    sizes = [m["accounting"]["size_bytes"] for m in (both["models"][1], stored["models"][1])]
    assert 0 < sizes[1] - sizes[0] < 20_000  # the header of the file


def test_two_denoisers_give_the_same_numbers_from_memory_and_from_folders(
    two_folder, tmp_path
) -> None:
    dense = load(two_folder, TwoDenoisersPipeline)
    both, second = pruned_copy(dense, NAMES), pruned_copy(dense, NAMES[1:])
    assert second.transformer is dense.transformer
    for name, pipeline in (("both", both), ("second", second)):
        pipeline.save_pretrained(tmp_path / name)
    folders = [tmp_path / "both", tmp_path / "second"]
    stored = evaluate(two_folder, folders, tmp_path / "a", **SMALL)
    here = evaluate(dense, {"both": both, "second": second}, tmp_path / "b", **SMALL)
    rows = comparable(here)
    assert rows == comparable(stored)
    assert here["gallery"] == stored["gallery"]
    errors = [row["metrics"]["relative_error"]["value"] for row in rows[1:]]
    assert errors[0] > errors[1] > 0
    assert {row["name"].partition(".")[0] for row in rows[1]["targets"]} == set(NAMES)
    with pytest.raises(ModelError, match="half: is one module, and the dense model has trans"):
        evaluate(dense, {"half": both.transformer}, tmp_path / "c", **SMALL)


@pytest.fixture
def two_folder(tiny_dit, tmp_path, monkeypatch) -> Path:
    return two_denoisers(tiny_dit(0), tiny_dit(1), tmp_path / "two", monkeypatch)


def state_of(pipeline: Any) -> dict[str, Any]:
    """Everything of a pipeline that a run might leave changed."""
    modules = {name: m for name, m in pipeline.components.items() if isinstance(m, nn.Module)}
    return {
        "parts": {name: id(part) for name, part in pipeline.components.items()},
        "attributes": {name: repr(value) for name, value in vars(pipeline).items()},
        "scheduler": {name: repr(value) for name, value in vars(pipeline.scheduler).items()},
        "weights": {name: digest(module) for name, module in modules.items()},
        "modes": [m.training for module in modules.values() for m in module.modules()],
    }


def test_nothing_of_a_pipeline_is_changed(dense, half, tmp_path) -> None:
    seen: list[bool] = []
    half.transformer.register_forward_hook(lambda module, _args, _out: seen.append(module.training))
    half.transformer.transformer_blocks[1].train()
    dense.vae.train()
    dense.set_progress_bar_config(desc="mine")
    dense.scheduler.set_timesteps(7)
    before = state_of(dense), state_of(half)
    random = torch.get_rng_state()
    evaluate(dense, {"half": half}, tmp_path, **SMALL)
    assert (state_of(dense), state_of(half)) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert seen
    assert not any(seen)  # it was in eval mode, as from a folder


def test_a_mode_of_training_changes_no_number(dense, half, tmp_path) -> None:
    one = evaluate(dense, {"half": half}, tmp_path / "a", **SMALL)
    for module in (dense.transformer, dense.vae, half.transformer):
        module.train()
    assert comparable(evaluate(dense, {"half": half}, tmp_path / "b", **SMALL)) == comparable(one)


def change_weight(pipeline: Any) -> None:
    with torch.no_grad():
        pipeline.transformer.transformer_blocks[0].attn1.to_q.weight[0, 0] += 1e-3


def change_decoder(pipeline: Any) -> None:
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias += 1.0


def change_switch(pipeline: Any) -> None:
    pipeline.vae.enable_slicing()


def change_scheduler(pipeline: Any) -> None:
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("change", [None, change_weight, change_decoder, change_switch,
                                    change_scheduler])  # fmt: skip
def test_kept_images_serve_the_same_pipeline_and_no_other(
    dense, tiny_dit, tmp_path, monkeypatch, change
) -> None:
    drawn: list[range] = []
    draw = drawing.draw_batch

    def draw_batch(*args: Any) -> Any:
        drawn.append(args[3])
        return draw(*args)

    monkeypatch.setattr(drawing, "draw_batch", draw_batch)
    other = tiny_dit(1)
    evaluate(dense, {"other": other}, tmp_path / "e", **SMALL)
    assert len(drawn) == 4  # two batches of each model
    drawn.clear()
    if change is not None:
        change(dense)
    again = evaluate(dense, {"other": other}, tmp_path / "e", **SMALL)
    assert len(drawn) == (2 if change is None else 4)
    fresh = evaluate(dense, {"other": other}, tmp_path / "fresh", **SMALL)
    assert comparable(again) == comparable(fresh)


def test_a_stopped_run_goes_on_and_a_changed_module_starts_anew(dense, half, tmp_path) -> None:
    def stop(what: str, done: int, _total: int) -> None:
        if (what, done) == ("images: half", 4):
            raise KeyboardInterrupt

    heard: list[tuple[str, int]] = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(dense, {"half": half}, tmp_path / "e", progress=stop, **SMALL)
        change_weight(half)
    evaluate(
        dense, {"half": half}, tmp_path / "e",
        progress=lambda what, done, _total: heard.append((what, done)), **SMALL,
    )  # fmt: skip
    assert [done for what, done in heard if what == "images: half"] == [4, 6]
    assert not any(what == "images: dense" for what, _ in heard)
    fresh = evaluate(dense, {"half": half}, tmp_path / "fresh", **SMALL)
    stopped = json.loads((tmp_path / "e" / "results.json").read_text(encoding="utf-8"))
    assert comparable(stopped) == comparable(fresh)


def offloaded(pipeline: Any) -> Any:
    from accelerate import cpu_offload

    cpu_offload(pipeline.transformer, execution_device=torch.device("cpu"))
    return pipeline


def group_offloaded(pipeline: Any) -> Any:
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    apply_group_offloading(pipeline.transformer, onload_device=cpu, offload_type="leaf_level")
    return pipeline


def in_half(pipeline: Any) -> Any:
    return pipeline.transformer.to(torch.bfloat16)


def with_other_scheduler(pipeline: Any) -> Any:
    change_scheduler(pipeline)
    return pipeline


def of_other_width(_pipeline: Any) -> Any:
    return PIPELINES["DiTPipeline"]().transformer


def packed(pipeline: Any) -> Any:
    pipeline.transformer.to("meta")
    return pipeline.transformer


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (offloaded, "half: its transformer is offloaded, so its weights are not in one place; "),
        (group_offloaded, "half: its transformer is offloaded"),
        (packed, "half is offloaded"),
        (in_half, "half: is in bfloat16 on cpu, the dense model in float32 on cpu; move one"),
        (with_other_scheduler, "half: its scheduler is not the dense model's"),
        (of_other_width, "half: its parameters have other names or shapes"),
        (lambda pipeline: pipeline.vae, "half: holds a AutoencoderKL, expected a DiTTransformer2"),
        (lambda pipeline: pipeline.scheduler, "half is a DDIMScheduler, expected a folder, a hub"),
    ],
)
def test_a_pruned_model_that_cannot_be_compared_as_it_is(
    dense, half, tmp_path, spoil, message
) -> None:
    with pytest.raises(DitpruneError, match=message) as refused:
        evaluate(dense, {"half": spoil(half)}, tmp_path / "e", **SMALL)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "e").exists()


def test_a_dense_model_that_cannot_be_run_as_it_is(dense, half, tmp_path) -> None:
    for given, message in (
        (offloaded(dense), "dense: its transformer is offloaded"),
        (half.transformer, "dense is a DiTTransformer2DModel, expected a folder"),
    ):
        with pytest.raises(DitpruneError, match=message):
            evaluate(given, {"half": half}, tmp_path / "e", **SMALL)


def test_a_model_is_not_compared_with_itself(dense, tmp_path) -> None:
    for same in (dense, dense.transformer, type(dense)(**dense.components)):
        with pytest.raises(RecipeError, match="half: is the dense model's own denoiser"):
            evaluate(dense, {"half": same}, tmp_path / "e", **SMALL)


def test_folders_are_loaded_like_a_model_in_memory(tiny_pipeline, half, tmp_path) -> None:
    half.save_pretrained(tmp_path / "half")
    place = Placement(dtype=torch.bfloat16)
    module = load_denoiser(tmp_path / "half" / "transformer", place)
    here = evaluate(tiny_pipeline, {"half": module}, tmp_path / "a", **SMALL)
    stored = evaluate(
        tiny_pipeline, [str(tmp_path / "half")], tmp_path / "b", dtype=torch.bfloat16, **SMALL
    )
    assert here["protocol"]["dtype"] == stored["protocol"]["dtype"] == "bfloat16"
    errors = [r["models"][1]["metrics"]["relative_error"]["value"] for r in (here, stored)]
    assert errors[0] == errors[1]
    dense = load_pipeline(locate(str(tiny_pipeline)), place)
    both = evaluate(dense, {"half": tmp_path / "half"}, tmp_path / "c", max_memory="8GB", **SMALL)
    assert both["protocol"]["dtype"] == "bfloat16"
    assert both["models"][1]["metrics"]["relative_error"]["value"] == errors[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_image": 4}, "evaluate: takes no num_image; did you mean 'num_images'"),
        ({"metric": ["ssim"]}, "did you mean 'metrics'"),
        ({"device": "cpu"}, "evaluate: device cpu: the dense pipeline is in memory"),
        ({"dtype": torch.bfloat16}, "evaluate: dtype torch.bfloat16: the dense pipeline is in"),
        ({"max_memory": "8GB"}, "evaluate: max_memory 8GB: the dense pipeline is in memory"),
        ({"metrics": "ssim"}, "evaluate: metrics is 'ssim', expected a list"),
        ({"prompts": "a cat"}, "evaluate: prompts is 'a cat', expected a list"),
        ({"labels": 3}, "evaluate: labels is 3, expected a list"),
        ({"num_images": 0}, "num_images=0: expected at least 1"),
    ],
)
def test_words_that_are_refused(dense, half, tmp_path, words, message) -> None:
    with pytest.raises(RecipeError, match=message):
        evaluate(dense, {"half": half}, tmp_path / "e", **SMALL | words)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("pruned", [[], {}, {"": "x"}, {1: "x"}])
def test_pruned_models_without_names(dense, tmp_path, pruned) -> None:
    with pytest.raises(RecipeError, match=r"pruned (is empty|holds str without a name)"):
        evaluate(dense, pruned, tmp_path)


def test_a_list_holds_folders_only(dense, half, tmp_path) -> None:
    for pruned in ([half], half, [half.transformer]):
        with pytest.raises(RecipeError, match="without a name; expected a list of folders, or a"):
            evaluate(dense, pruned, tmp_path / "e")


def test_a_path_alone_is_no_list(tiny_pipeline, tmp_path) -> None:
    with pytest.raises(RecipeError, match="pruned holds str without a name"):
        evaluate(tiny_pipeline, "half", tmp_path / "e")


def test_the_example_of_the_docstring_runs(dense, half, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    lines = str(evaluate.__doc__).split("\n\n")[1]
    code = "\n".join(line.removeprefix(" " * 8) for line in lines.splitlines())
    assert len(code.splitlines()) == 3
    monkeypatch.setattr(ditprune, "evaluate", evaluate, raising=False)
    exec(code, {"ditprune": ditprune, "pipe": dense, "pruned_pipe": half})
    value, low, high = map(float, capsys.readouterr().out.split())
    assert low <= value <= high <= 1
    assert (tmp_path / "eval" / "results.json").is_file()
