"""A study from a folder to results.json, table and figures; stopped, gone on with, shared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.errors import ModelError, OutputError, RecipeError
from ditprune.evaluation.compare import compare as evaluate
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.method.words import build
from ditprune.pruning.convert import to_compact
from ditprune.pruning.loop import prune_checkpoint
from ditprune.reproduce.rows import Options
from ditprune.reproduce.run import reproduce_study

SMALL: dict[str, Any] = {
    "num_images": 3, "num_held_out": 4, "batch_size": 2, "num_samples": 4, "steps": (2,),
    "guidance_scales": (1.5,),
}  # fmt: skip


class Log:
    """A report that remembers, and that stops the study when it has heard enough."""

    def __init__(self, stop_at: str | None = None, done: int = 1) -> None:
        self.heard: list[tuple[str, int, int]] = []
        self.stop_at, self.done = stop_at, done

    def __call__(self, what: str, done: int, total: int) -> None:
        self.heard.append((what, done, total))
        if what == self.stop_at and done >= self.done:
            raise KeyboardInterrupt

    def num_drawn(self) -> int:
        return sum(what == "images of this row" for what, *_ in self.heard)


def run(name: str, model: Path, out: Path, progress: Any = None, **options: Any) -> dict[str, Any]:
    given = Options(**{**SMALL, **options})
    found = reproduce_study(
        name, locate(str(model)), out, given, progress=progress or Log(), command="again"
    )
    return found[name]


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Without the seconds and the memory it took."""
    results = json.loads(json.dumps(results))
    for row in results["rows"]:
        assert row["accounting"].pop("seconds_per_image") > 0
        row["accounting"].pop("peak_memory_bytes")
    return results


@pytest.fixture(scope="module")
def ablation(tiny_pipeline, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The folder and the results of one study; never changed by a test."""
    out = tmp_path_factory.mktemp("reproduce") / "out"
    return out, run("ablation", tiny_pipeline, out)


def test_a_study_writes_its_results_its_table_and_its_figure(ablation) -> None:
    out, results = ablation
    text = (out / "ablation" / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(results))
    names = [row["name"] for row in results["rows"]]
    assert names == ["dense", "Wanda", "+ STW", "+ STW + CAG"]
    for row in results["rows"][1:]:
        assert row["sparsity"] == pytest.approx(0.5, abs=0.01)
        assert row["metrics"]["relative_error"]["low"] is not None
    assert results["rows"][3]["granularity"].keys() == {"channel", "layer"}
    assert results["command"] == "again"
    assert results["protocol"].items() >= {"num_images": 3, "seed": 0, "dense": "model"}.items()
    assert "num_inference_steps" not in results["protocol"]
    assert results["rows"][1]["setting"]["num_inference_steps"] == 2
    assert results["findings"]
    assert results["conclusions"]
    assert results["paper"]["figures"][0]["lines"][1]["metrics"]["fid"] == 57.3
    table = (out / "ablation" / "table.md").read_text(encoding="utf-8")
    error = f"{results['rows'][1]['metrics']['relative_error']['value']:.5f}"
    assert any(
        line.startswith("| Wanda | 50.0 % |") and error in line for line in table.splitlines()
    )
    shown = next(line for line in table.splitlines() if line.startswith("| method | removed"))
    for metric in results["metrics"].values():
        assert (f" {metric['title']}" in shown) == (metric["unavailable"] is None), metric["title"]
    assert "PSNR dB ↑" in shown
    assert "| Wanda | 50 % | 0.473 | 57.3 | 101 | 38.8 | 0.34 |" in table
    assert all(f"- {one}" in table for one in results["conclusions"])
    (figure,) = results["figures"]
    svg = (out / "ablation" / figure).read_text(encoding="utf-8")
    assert all(f">{name}<" in svg for name in ("Wanda", "+ STW + CAG", "relative error", "SSIM"))


def test_a_row_is_what_evaluate_says_of_the_same_model(ablation, tiny_pipeline, tmp_path) -> None:
    _, results = ablation
    model, sampling = locate(str(tiny_pipeline)), Sampling(4, "uniform", 2, 1.5)
    pipeline = load_pipeline(model)
    import ditprune

    stats = ditprune.calibrate(pipeline.transformer, sample_calls(pipeline, sampling))
    recipe = build(saliency="wanda", granularity="channel", sparsity=0.5)
    prune_checkpoint(model, tmp_path / "p", {"transformer": stats}, recipe)
    protocol = Protocol(3, 0, 2, 1.5, num_held_out=4, batch_size=2)
    own = evaluate(model, [("Wanda", locate(str(tmp_path / "p")))], tmp_path / "e", protocol)
    ours, theirs = results["rows"][1], own["models"][1]
    assert ours["metrics"] == theirs["metrics"]
    assert ours["error_by_timestep"] == theirs["error_by_timestep"]
    assert results["rows"][0]["metrics"] == own["models"][0]["metrics"]
    assert results["metrics"] == own["metrics"]


@pytest.mark.parametrize(
    ("stop_at", "done"), [("ablation: rows", 2), ("images of this row", 2), ("sampling", 1)]
)
def test_a_stopped_study_goes_on_and_ends_the_same(
    stop_at, done, ablation, tiny_pipeline, tmp_path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run("ablation", tiny_pipeline, out, Log(stop_at, done))
    assert not (out / "ablation").exists()
    log = Log()
    results = run("ablation", tiny_pipeline, out, log)
    assert timeless(results) == timeless(ablation[1])
    drawn = {"ablation: rows": 4, "images of this row": 7, "sampling": 8}[stop_at]
    assert log.num_drawn() == drawn  # of 8 batches
    assert not (out / ".work" / "pruned").exists() or not any((out / ".work/pruned").iterdir())


def test_rows_in_common_are_made_once_and_a_done_study_needs_no_model(
    ablation, tiny_pipeline, tmp_path
) -> None:
    out = Path(shutil.copytree(ablation[0], tmp_path / "out"))
    log = Log()
    again = run("ablation", tiny_pipeline, out, log)
    assert again == ablation[1]
    assert {what for what, *_ in log.heard} == {"ablation: rows"}
    log = Log()
    main = run("main", tiny_pipeline, out, log, sparsities=(0.5,))
    assert log.num_drawn() == 2  # magnitude alone; dense, Wanda and DiT-Pruning are there
    assert all(what != "sampling" for what, *_ in log.heard)
    assert main["rows"][3]["metrics"] == again["rows"][3]["metrics"]
    assert [row["name"] for row in main["rows"]][3] == "DiT-Pruning"


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_samples": 5}, {"num_held_out": 5}])
def test_a_row_of_other_options_is_not_taken(change, ablation, tiny_pipeline, tmp_path) -> None:
    out = Path(shutil.copytree(ablation[0], tmp_path / "out"))
    other = run("ablation", tiny_pipeline, out, **change)
    ours, theirs = (r["rows"][1]["metrics"]["relative_error"] for r in (other, ablation[1]))
    assert ours != theirs


def test_another_model_in_its_place_is_not_taken(ablation, own_pipeline, tmp_path) -> None:
    out = Path(shutil.copytree(ablation[0], tmp_path / "out"))
    weights = own_pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import save_file

    tensors = load_file(weights)
    name = "transformer_blocks.0.attn1.to_q.weight"
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, weights, {"format": "pt"})
    other = run("ablation", own_pipeline, out)
    assert other["rows"][1]["metrics"] != ablation[1]["rows"][1]["metrics"]


@pytest.mark.parametrize(
    ("study", "options", "names"),
    [
        ("nm", {}, ["dense", *("magnitude", "Wanda", "STW") * 2]),
        ("exponents", {}, ["dense", *(f"(m, n) = ({m}, 1)" for m in ("0.5", "1", "2", "3"))]),
        ("timesteps", {"num_samples": 3, "steps": (6,)},
         ["dense", "early", "middle", "late", "all"]),
        ("calibration-size", {"num_samples": None, "sizes": (2, 4)},
         ["dense", "2 samples", "4 samples"]),
        ("guidance", {"guidance_scales": (1.0, 3.0)},
         ["dense", "magnitude", "Wanda", "DiT-Pruning"] * 2),
    ],
)  # fmt: skip
def test_every_study_runs(study, options, names, tiny_pipeline, tmp_path) -> None:
    options = {"num_images": 2, "num_held_out": 2, **options}
    results = run(study, tiny_pipeline, tmp_path / "out", **options)
    assert [row["name"] for row in results["rows"]] == names
    errors = [row["metrics"]["relative_error"] for row in results["rows"]]
    assert [one is None for one in errors] == [name == "dense" for name in names]
    values = [one["value"] for one in errors if one]
    assert len(set(values)) == len(values)  # every row is another model
    assert (tmp_path / "out" / study / f"{study}.svg").is_file()
    assert (tmp_path / "out" / study / "table.md").is_file()


def test_statistics_are_those_of_weights_and_inputs(tiny_pipeline, tmp_path) -> None:
    options = Options(num_samples=4, steps=(2,), guidance_scales=(1.5,))
    (results,) = reproduce_study(
        "statistics", locate(str(tiny_pipeline)), tmp_path / "out", options
    ).values()
    pipeline = load_pipeline(locate(str(tiny_pipeline)))
    calls = sample_calls(pipeline, Sampling(4, "uniform", 2, 1.5))
    seen: list[torch.Tensor] = []
    layer = pipeline.transformer.transformer_blocks[1].ff.net[2]
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten()))
    for call in calls:
        with torch.no_grad():
            pipeline.transformer(*call.args, **call.kwargs)
    inputs, weight = torch.cat(seen).double().abs(), layer.weight.detach().double().abs()
    (row,) = (r for r in results["rows"] if r["name"] == "transformer_blocks.1.ff.net.2")
    expected = {
        "input_mean": inputs.mean(), "input_max": inputs.max(), "weight_mean": weight.mean(),
        "weight_max": weight.max(), "ratio": weight.mean() / inputs.mean(),
        "squared_ratio": weight.square().mean() / inputs.mean(),
    }  # fmt: skip
    for key, value in expected.items():
        assert row[key] == pytest.approx(value.item(), rel=1e-5), key
    assert (row["role"], row["depth"], row["layer"]) == ("mlp", 1, "ff.net.2")
    counts = results["histograms"]["counts"]
    sizes: dict[str, int] = {}
    for one in results["rows"]:
        height, width = one["shape"]
        sizes[one["role"]] = sizes.get(one["role"], 0) + height * width
    assert {role: sum(own) for role, own in counts.items()} == sizes
    assert results["figures"] == ["histograms.svg", "sizes.svg"]


def test_importance_draws_a_layer_of_each_role_or_those_asked_for(tiny_pipeline, tmp_path) -> None:
    options = {"num_samples": 4, "steps": (2,), "guidance_scales": (1.5,)}
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    (results,) = reproduce_study("importance", model, out, Options(**options)).values()
    middle = "transformer_blocks.1"
    drawn = [f"{middle}.norm1.linear", f"{middle}.attn1.to_q", f"{middle}.ff.net.0.proj"]
    assert results["figures"] == [f"map-{name}.svg" for name in drawn]
    assert "maps" not in results
    pipeline = load_pipeline(model)
    import ditprune

    calls = sample_calls(pipeline, Sampling(4, "uniform", 2, 1.5))
    plan = ditprune.inspect(pipeline.transformer, ditprune.calibrate(pipeline.transformer, calls))
    ours = {row["name"]: (row["g_out"], row["granularity"]) for row in results["rows"]}
    assert ours == {n: (pytest.approx(t.g_out), t.granularity) for n, t in plan.targets.items()}
    (again,) = reproduce_study(
        "importance", model, out, Options(**options, layers=("*.0.ff.net.2",))
    ).values()
    assert again["figures"] == ["map-transformer_blocks.0.ff.net.2.svg"]
    svg = (out / "importance" / again["figures"][0]).read_text(encoding="utf-8")
    assert "output channel" in svg
    assert "<image" in svg


def test_a_look_that_is_there_is_not_repeated(tiny_pipeline, tmp_path) -> None:
    options = Options(num_samples=2, steps=(2,), guidance_scales=(1.5,))
    model, log = locate(str(tiny_pipeline)), Log()
    first = reproduce_study("statistics", model, tmp_path / "out", options)
    second = reproduce_study("statistics", model, tmp_path / "out", options, progress=log)
    assert log.heard == []
    assert json.dumps(first) == json.dumps(second)


def test_what_cannot_be_done_is_refused_and_leaves_nothing(tiny_pipeline, tmp_path) -> None:
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    with pytest.raises(RecipeError, match=r"sparsity=1.5"):
        reproduce_study("main", model, out, Options(sparsities=(1.5,)))
    with pytest.raises(RecipeError, match="bare denoiser"):
        reproduce_study("main", locate(str(tiny_pipeline / "transformer")), out, Options())
    with pytest.raises(RecipeError, match="'statistics' draws no images"):
        reproduce_study("statistics", model, out, Options(), Measures(("fid",)))
    assert not out.exists()


def test_a_compact_model_is_refused_with_the_way_back(tiny_pipeline, tmp_path) -> None:
    half, small, out = tmp_path / "half", tmp_path / "small", tmp_path / "out"
    prune_checkpoint(locate(str(tiny_pipeline)), half, None, build(saliency="magnitude"))
    to_compact(locate(str(half)), small)
    few = Options(num_samples=4, steps=(2,), guidance_scales=(1.5,))
    for study, options in {"main": Options(**SMALL), "statistics": few}.items():
        with pytest.raises(ModelError, match=r"are compact; convert it first: .* --to dense"):
            reproduce_study(study, locate(str(small)), out, options)
    assert not out.exists()


def test_a_damaged_row_is_named(ablation, tiny_pipeline, tmp_path) -> None:
    out = Path(shutil.copytree(ablation[0], tmp_path / "out"))
    for file in (out / ".work" / "rows").iterdir():
        file.write_text("{", encoding="utf-8")
    with pytest.raises(OutputError, match=r"rows/.*\.json: cannot be read as JSON"):
        run("ablation", tiny_pipeline, out)


def test_a_study_looks_at_the_blocks_that_are_named(tiny_pipeline, tmp_path) -> None:
    options = {"num_samples": 2, "steps": (2,), "guidance_scales": (1.5,)}
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    found = reproduce_study("statistics", model, out, Options(**options))["statistics"]
    (named,) = reproduce_study(
        "statistics", model, out, Options(**options, blocks=("transformer_blocks.1",))
    ).values()
    names = [row["name"] for row in named["rows"]]
    assert names == [row["name"] for row in found["rows"] if ".1." in row["name"]]
    rows = reproduce_study(
        "ablation", model, out, Options(
            num_images=2, num_held_out=2, num_samples=2, sparsities=(0.5,), steps=(2,),
            guidance_scales=(1.5,), blocks=("transformer_blocks.1",),
        ), Measures(("relative_error",)),
    )["ablation"]["rows"]  # fmt: skip
    pruned = [row for row in rows if row["recipe"] is not None]
    assert len(pruned) == 3
    assert all(row["recipe"]["blocks"] == ["transformer_blocks.1"] for row in pruned)
