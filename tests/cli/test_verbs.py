"""Every verb from end to end: what it prints, what it writes, and that it runs nothing foreign."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ditprune import bundled
from ditprune.calibration import collect
from ditprune.checkpoints.calibration_set import load_calibration_set
from ditprune.checkpoints.statistics_file import read_statistics_file
from ditprune.cli import demo as demo_verb
from ditprune.cli.prune import prune as prune_verb
from ditprune.method.choices import constant_words
from ditprune.method.words import build, words_of_recipes
from ditprune.pruning import loop
from folders import add_denoiser, edit_json, edit_tensors, files_of, shards_of, tensors_on_disk

SAMPLING = ["--num-inference-steps", 2, "--guidance-scale", 1.5]
OPTIONS = {
    "inspect": "--statistics --include --exclude --auxiliary --json",
    "calibrate": "-o --num-samples --timesteps --num-inference-steps --guidance-scale --labels "
    "--prompts --seed --calibration-set",
    "prune": "-o --statistics --saliency --granularity --sparsity --pattern --weight-power "
    "--activation-power --cag-threshold --include --exclude --auxiliary --dry-run --gpu-rate "
    "--recipe --overwrite --push-to-hub",
    "verify": "OUT",
    "evaluate": "DENSE PRUNED -o --num-images --seed --metrics --feature-extractor --reference "
    "--clip --images",
    "report": "DIR -o",
    "push": "OUT REPO --private",
    "bench": "MODEL|OUT --sparsity --pattern --backend --device --max-memory --num-tokens --height "
    "--width --pipeline-option --time-limit --json --out",
    "demo": "-o",
}


def ok(result: tuple[int, str, str]) -> str:
    """The stdout of a run that ended well."""
    code, out, err = result
    assert code == 0, err
    assert "error" not in err
    return out


@pytest.mark.parametrize("verb", OPTIONS)
def test_the_help_of_a_verb_names_every_option(verb, ditprune) -> None:
    out = ok(ditprune(verb, "--help"))
    for option in OPTIONS[verb].split():
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", out), option
    assert ok(ditprune(verb, "-h")) == out


@pytest.mark.parametrize("verb", OPTIONS)
def test_the_help_groups_options_by_what_they_are_about(verb, ditprune) -> None:
    """No option of the method, of the place or of the output stands without a heading."""
    sections = re.split(r"^(\w+):$", ok(ditprune(verb, "--help")), flags=re.MULTILINE)
    group_of = {
        option: heading
        for heading, text in zip(sections[1::2], sections[2::2], strict=True)
        for option in re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    }
    expected = {
        "--out": "Output", "--overwrite": "Output", "--dry-run": "Output", "--json": "Output",
        "--device": "Where", "--max-memory": "Where", "--sparsity": "Method", "--blocks": "Method",
        "--saliency": "Method", "--recipe": "Method", "--seed": "Sampling",
        "--metrics": "Measuring",
    }  # fmt: skip
    for option, heading in group_of.items():
        assert heading == expected.get(option, heading), option
        assert heading != "Options" or option in ("--help", "--statistics", "--to"), option


def test_the_help_names_every_verb_and_the_version_is_told(ditprune) -> None:
    for args in ([], ["--help"]):
        out = ok(ditprune(*args))
        for verb in OPTIONS:
            assert re.search(rf"^  {verb} ", out, re.MULTILINE)
    assert re.search(r"\d+\.\d+", ok(ditprune("--version")))


def test_the_help_of_prune_names_every_choice(ditprune) -> None:
    out = ok(ditprune("prune", "--help"))
    for name in ("magnitude", "wanda", "stw", "power", "ria", "cag", "layer", "channel", "N:M"):
        assert name in out


def test_flags_are_fields_of_the_recipe_and_keys_of_its_json() -> None:
    flags = {parameter.name for parameter in prune_verb.params}
    run = {"model", "out", "statistics", "recipe", "dry_run", "overwrite", "set_folder", "device",
           "dtype", "max_memory", "repo", "gram_memory", "gpu_rate"}  # fmt: skip
    # Constants of methods that have many stand beside the method, as in obs,damping=0.02.
    fields = set(words_of_recipes()) - {"reconstruction_constants", "refinement_constants"}
    assert flags - run == fields
    assert set(build().to_json()) == fields - {"preset", *constant_words()}
    for parameter in prune_verb.params:
        if parameter.name in fields:
            assert parameter.opts == ["--" + parameter.name.replace("_", "-")]


def test_inspect_prints_a_plan_whose_sums_are_right(ditprune, tiny_pipeline) -> None:
    plan = json.loads(ok(ditprune("inspect", tiny_pipeline, "--json")))
    tensors = tensors_on_disk(tiny_pipeline / "transformer")
    shapes = {name: tuple(tensors[f"{name}.weight"].shape) for name in plan["targets"]}
    assert {name: tuple(t["shape"]) for name, t in plan["targets"].items()} == shapes
    assert plan["num_targets"] == len(plan["targets"]) == 21
    assert plan["num_weights"] == sum(a * b for a, b in shapes.values())
    assert plan["num_parameters"] == sum(t.numel() for t in tensors.values())
    assert plan["model_share_at_50"] == plan["num_weights"] / 2 / plan["num_parameters"]
    assert {t["role"] for t in plan["targets"].values()} == {"modulation", "attention", "mlp"}
    assert {(t["g_out"], t["granularity"]) for t in plan["targets"].values()} == {(None, None)}
    assert plan["cag_threshold"] is None


def test_inspect_with_statistics_says_what_prune_does(
    ditprune, tiny_pipeline, statistics, pruned
) -> None:
    plan = json.loads(ok(ditprune("inspect", tiny_pipeline, "--statistics", statistics, "--json")))
    claims = json.loads((pruned / "transformer" / "ditprune.json").read_text(encoding="utf-8"))
    assert list(plan["targets"]) == list(claims["targets"])
    for name, target in claims["targets"].items():
        planned = plan["targets"][name]
        assert planned["num_prune"] == target["num_pruned"]
        for key in ("g_out", "granularity", "shape", "role", "block", "depth"):
            assert planned[key] == target[key]
    assert plan["cag_threshold"] == claims["cag_threshold"]
    assert {t["granularity"] for t in plan["targets"].values()} <= {"layer", "channel"}


def test_the_table_of_inspect_holds_what_its_json_holds(ditprune, tiny_pipeline) -> None:
    one = ["inspect", tiny_pipeline, "--include", "*.1.attn1.*", "--exclude", "*.to_v"]
    plan = json.loads(ok(ditprune(*one, "--json")))
    out = ok(ditprune(*one))
    assert plan["num_targets"] == 3
    for name, target in plan["targets"].items():
        (line,) = (line for line in out.splitlines() if line.startswith(name))
        assert line.split()[1:4] == [*map(str, target["shape"]), target["role"]]
    assert f"3 targets, {plan['num_weights']:,} of {plan['num_parameters']:,} parameters" in out
    assert f"50 % of the targets is {plan['model_share_at_50']:.1%} of the whole model" in out


def test_two_calibrations_are_the_same_bytes(ditprune, tiny_pipeline, statistics, tmp_path) -> None:
    command = ["calibrate", tiny_pipeline, "--num-samples", 4, *SAMPLING]
    ok(ditprune(*command, "-o", tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == statistics.read_bytes()
    ok(ditprune(*command, "-o", tmp_path / "seed", "--seed", 1))
    assert (tmp_path / "seed").read_bytes() != statistics.read_bytes()
    protocol = read_statistics_file(tmp_path / "seed")["transformer"].protocol
    assert (protocol["seed"], protocol["num_samples"], protocol["timesteps"]) == (1, 4, "uniform")
    assert (protocol["num_inference_steps"], protocol["guidance_scale"]) == (2, 1.5)


@pytest.mark.parametrize(
    "options",
    [["--timesteps", "late"], ["--labels", "3"], ["--num-bins", 2], ["--guidance-scale", 1]],
    ids=str,
)
def test_every_option_of_calibrate_acts(
    options, ditprune, tiny_pipeline, statistics, tmp_path
) -> None:
    command = ["calibrate", tiny_pipeline, "--num-samples", 4, *SAMPLING, *options]
    ok(ditprune(*command, "-o", tmp_path / "s"))
    one, two = load_file(tmp_path / "s"), load_file(statistics)
    assert one.keys() == two.keys()
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_calibration_set_gives_the_same_statistics_without_the_pipeline(
    ditprune, tiny_pipeline, statistics, tmp_path
) -> None:
    kept = tmp_path / "set"
    first = ["calibrate", tiny_pipeline, "--num-samples", 4, *SAMPLING, "--calibration-set", kept]
    ok(ditprune(*first, "-o", tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == statistics.read_bytes()
    before = files_of(kept)
    second = ["calibrate", tiny_pipeline / "transformer", "--calibration-set", kept]
    ok(ditprune(*second, "-o", tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == statistics.read_bytes()
    assert files_of(kept) == before
    (unit,) = [load_calibration_set(kept)]
    (calls, style), stats = unit.read(0), read_statistics_file(statistics)["transformer"]
    assert dict(stats.protocol) == {**unit.protocol, "denoiser_calls": style}
    assert stats.num_calls == len(calls)
    assert style["rows_per_image"] == 2


def test_an_option_that_a_calibration_set_contradicts_is_refused(
    ditprune, refused, tiny_pipeline, statistics, tmp_path
) -> None:
    kept = tmp_path / "set"
    command = ["calibrate", tiny_pipeline, "--num-samples", 4, *SAMPLING, "--calibration-set", kept]
    ok(ditprune(*command, "-o", tmp_path / "a"))
    again = ["calibrate", tiny_pipeline, "--calibration-set", kept, "-o", tmp_path / "b"]
    ok(ditprune(*again, "--num-samples", 4))
    line = refused(*again[:-1], tmp_path / "c", "--seed", 1)
    assert f"--seed: the calibration set {kept} was sampled with 0" in line


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    ditprune, tiny_pipeline, statistics, tmp_path
) -> None:
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--statistics", statistics]
    out = ok(ditprune(*command, "--dry-run", "--include", "*.to_q"))
    assert "3 targets" in out
    assert "transformer_blocks.2.attn1.to_q" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--sparsity", 0.3, "--saliency", "wanda", "--granularity", "channel"],
        ["--saliency", "power", "--weight-power", 3, "--activation-power", 0.5],
        ["--pattern", "2:4", "--saliency", "ria", "--exclude", "*.ff.*", "--exclude", "*.to_q"],
        ["--cag-threshold", 0.02, "--include", "*.attn1.*", "--include", "*.norm1.linear"],
        ["--cag-threshold", 0.5],
    ],
    ids=str,
)
def test_the_recipe_of_a_manifest_makes_the_same_bytes(
    options, ditprune, tiny_pipeline, statistics, tmp_path
) -> None:
    command = ["prune", tiny_pipeline, "--statistics", statistics]
    ok(ditprune(*command, "-o", tmp_path / "a", *options))
    recipe = tmp_path / "a" / "transformer" / "ditprune.json"
    ok(ditprune(*command, "-o", tmp_path / "b", "--recipe", recipe))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    alone = tmp_path / "recipe.json"
    alone.write_text(json.dumps(json.loads(recipe.read_text())["recipe"]), encoding="utf-8")
    ok(ditprune(*command, "-o", tmp_path / "c", "--recipe", alone))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")
    assert ok(ditprune("verify", tmp_path / "c")).endswith("every claim holds\n")


def test_flags_override_the_recipe_file(
    ditprune, tiny_pipeline, statistics, pruned, tmp_path
) -> None:
    command = ["prune", tiny_pipeline, "--statistics", statistics, "-o", tmp_path / "out"]
    recipe = pruned / "transformer" / "ditprune.json"
    ok(ditprune(*command, "--recipe", recipe, "--sparsity", 0.25))
    claims = json.loads((tmp_path / "out" / "transformer" / "ditprune.json").read_text())
    assert claims["recipe"] == json.loads(recipe.read_text())["recipe"] | {"sparsity": 0.25}
    assert claims["totals"]["sparsity"] == 0.25


def test_inspect_takes_a_recipe_file_and_what_overrides_it(
    ditprune, tiny_pipeline, statistics, pruned
) -> None:
    recipe = pruned / "transformer" / "ditprune.json"

    def targets(*options: object) -> Any:
        command = ["inspect", tiny_pipeline, "--statistics", statistics, "--json"]
        return json.loads(ok(ditprune(*command, *options)))["targets"]

    assert targets("--recipe", recipe) == targets()
    assert targets("--recipe", f"transformer={recipe}") == targets()
    quarter = targets("--sparsity", 0.25)
    assert targets("--recipe", recipe, "--sparsity", 0.25) == quarter != targets()


def test_overwrite_replaces_what_ditprune_wrote(
    ditprune, tiny_pipeline, statistics, pruned, tmp_path
) -> None:
    out = shutil.copytree(pruned, tmp_path / "out")
    (out / "rest").touch()
    command = ["prune", tiny_pipeline, "-o", out, "--statistics", statistics, "--overwrite"]
    code, _, err = ditprune(*command)
    assert code == 2
    assert "holds rest, which no manifest of ditprune lists" in err
    (out / "rest").unlink()
    ok(ditprune(*command))
    assert files_of(out) == files_of(pruned)
    assert list(tmp_path.iterdir()) == [out]


def test_prune_says_what_it_removed(ditprune, tiny_pipeline, pruned, statistics, tmp_path) -> None:
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--statistics", statistics]
    out = ok(ditprune(*command))
    totals = json.loads((pruned / "transformer" / "ditprune.json").read_text())["totals"]
    assert f"removed {totals['num_pruned']:,} of {totals['num_weights']:,}" in out
    assert "(50.00%)" in out
    assert f"{totals['model_sparsity']:.2%} of the whole denoiser" in out


def test_verify_tells_a_good_folder_from_a_spoilt_one(ditprune, pruned, tmp_path) -> None:
    for folder in (pruned, pruned / "transformer"):
        code, printed, err = ditprune("verify", folder)
        assert (code, err) == (0, "")
        assert printed.endswith(f"\n{folder}: every claim holds\n")
    out = shutil.copytree(pruned, tmp_path / "out")
    name = "transformer_blocks.1.attn1.to_q"
    edit_tensors(
        shards_of(out / "transformer")[0],
        lambda tensors: tensors[f"{name}.weight"].masked_fill_(tensors[f"{name}.weight"] == 0, 1),
    )
    code, text, err = ditprune("verify", out)
    assert code == 1
    assert err == ""
    lines = text.splitlines()
    assert all(line.startswith(f"false: {name}: ") for line in lines[:-1])
    assert lines[-1] == f"{out}: {len(lines) - 1} false claims"
    assert f"false: {name}: 0 zeros on disk, 512 claimed" in lines


def test_code_in_a_model_folder_is_never_run(ditprune, refused, own_pipeline, tmp_path) -> None:
    mark = tmp_path / "executed"
    code = f"open({str(mark)!r}, 'w')\nclass Mine: pass\nclass DiTPipeline: pass\n"
    for folder in (own_pipeline, *(p for p in own_pipeline.iterdir() if p.is_dir())):
        for name in ("pipeline.py", "mine.py", "__init__.py", f"{folder.name}.py"):
            (folder / name).write_text(code, encoding="utf-8")
        (folder / "extra.pkl").write_bytes(pickle.dumps(print))
    command = ["calibrate", own_pipeline, "--num-samples", 1, "--num-inference-steps", 1]
    ok(ditprune(*command, "-o", tmp_path / "s"))
    ok(ditprune("prune", own_pipeline, "-o", tmp_path / "out", "--statistics", tmp_path / "s"))
    index = own_pipeline / "model_index.json"
    good = index.read_bytes()
    for changes in (
        {"scheduler": ["mine", "Mine"]},
        {"transformer": ["transformer", "Mine"]},
        {"extra": ["mine", "Mine"]},
        {"_class_name": "Mine"},
        {"_class_name": ["pipeline", "Mine"]},
        {"_class_name": "pipeline"},
        {"scheduler": []},
        {"scheduler": [["mine"], "Mine"]},
    ):
        index.write_bytes(good)
        edit_json(index, lambda content, changes=changes: content.update(changes))
        refused(*command, "-o", tmp_path / "t")
    assert not mark.exists()


def test_a_pipeline_part_that_is_not_installed_is_refused(
    refused, own_pipeline, tmp_path, monkeypatch
) -> None:
    import diffusers

    def missing(*_args: object, **_kwargs: object) -> None:
        raise ImportError("DiTPipeline requires the transformers library\nbut it was not found")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", missing)
    line = refused("calibrate", own_pipeline, "-o", tmp_path / "s")
    assert "requires the transformers library" in line


def test_an_interrupt_keeps_the_work_and_says_so(
    ditprune, tiny_pipeline, tmp_path, monkeypatch
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude"]
    with monkeypatch.context() as patch:
        patch.setattr("ditprune.pruning.loop.prune_weight_", interrupt)
        code, out, err = ditprune(*command)
    assert (code, out) == (130, "")
    part = tmp_path / ".out.part"
    assert f"{part} holds what is done; the same command goes on from there" in err
    assert err.splitlines()[-1] == "stopped"
    assert part.is_dir()
    assert not (tmp_path / "out").exists()
    ok(ditprune(*command))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_inspect_and_a_dry_run_expect_is_written(
    ditprune, tiny_pipeline, statistics, pruned, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [tiny_pipeline, "--statistics", statistics]
    expected = json.loads(ok(ditprune("inspect", *command, "--json")))["estimate"]
    made = ("ditprune.json", "README.md")
    files = {name: raw for name, raw in files_of(pruned).items() if not name.endswith(made)}
    assert expected["num_bytes"] == sum(map(len, files.values()))
    assert expected["seconds"] > 0
    assert expected["peak_bytes"] > 50_000_000
    line = f"pruning it writes {expected['num_bytes']:,} bytes and takes about "
    assert line in ok(ditprune("inspect", *command))
    assert line in ok(ditprune("prune", *command, "-o", tmp_path / "a" / "out", "--dry-run"))
    assert list(tmp_path.iterdir()) == []


def test_several_denoisers_are_told_apart(ditprune, own_pipeline, tiny_dit, tmp_path) -> None:
    add_denoiser(own_pipeline, tiny_dit(1))
    out = ok(ditprune("inspect", own_pipeline, "--include", "*.1.attn1.to_q"))
    for name in ("transformer", "transformer_2"):
        assert re.search(rf"^{name}: transformer_blocks.1.attn1.to_q +32 +32", out, re.MULTILINE)
        assert f"{name}: 1 targets, 1,024 of" in out
    content = json.loads(ok(ditprune("inspect", own_pipeline, "--json")))
    assert list(content["denoisers"]) == ["transformer", "transformer_2"]
    command = ["prune", own_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude"]
    out = ok(ditprune(*command))
    assert len(re.findall(r"^transformer(?:_2)?: removed ", out, re.MULTILINE)) == 2
    ok(ditprune("verify", tmp_path / "out"))
    file = shards_of(tmp_path / "out" / "transformer_2")[0]
    edit_tensors(file, lambda t: t["transformer_blocks.1.attn1.to_q.bias"].add_(1))
    code, out, _ = ditprune("verify", tmp_path / "out")
    assert code == 1
    assert out.startswith("false: transformer_2: transformer_blocks.1.attn1.to_q.bias: differs")


def test_what_stays_dense_is_told_by_reason(ditprune, tiny_pipeline, tmp_path) -> None:
    options = ["--saliency", "magnitude", "--exclude", "*.to_q"]
    out = ok(ditprune("prune", tiny_pipeline, "-o", tmp_path / "out", *options))
    line = next(line for line in out.splitlines() if "not among the chosen" in line)
    assert "stays dense: transformer_blocks.0.attn1.to_q and 2 more, 3,072 weights (" in line
    claims = json.loads((tmp_path / "out" / "transformer" / "ditprune.json").read_text())
    assert claims["left_out"]["transformer_blocks.2.attn1.to_q"]["num_weights"] == 1024
    assert line in ok(ditprune("inspect", tiny_pipeline, "--exclude", "*.to_q"))


def test_every_verb_on_the_bundled_model(ditprune, tmp_path) -> None:
    dense, stats, out = files_of(bundled.PIPELINE), tmp_path / "s", tmp_path / "half"
    assert "48 targets" in ok(ditprune("inspect", "bundled", "--include", "*.attn1.*",
                                       "--include", "*.ff.*"))  # fmt: skip
    ok(ditprune("calibrate", "bundled", "-o", stats, "--num-samples", 4, *SAMPLING))
    assert "by G_out" not in ok(ditprune("inspect", "bundled", "--statistics", stats))
    ok(ditprune("prune", "bundled", "-o", out, "--statistics", stats))
    ok(ditprune("verify", out))
    place = tmp_path / "e"
    command = ["evaluate", "bundled", out, "-o", place, "--num-images", 10, "--num-held-out", 4]
    printed = ok(ditprune(*command, *SAMPLING))
    assert "half" in printed
    assert "not InceptionV3's" in printed
    results = json.loads((place / "results.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in results["models"]] == ["dense", "half"]
    assert results["models"][1]["sparsity"] == pytest.approx(0.5, abs=1e-4)
    with Image.open(place / "grid.png") as grid:
        assert grid.size[0] > 1000
    assert files_of(bundled.PIPELINE) == dense


def test_the_demo_compares_three_methods_and_says_where_everything_lies(
    ditprune, tmp_path, monkeypatch
) -> None:
    """Stopped after its first part it goes on; made again it does nothing twice."""
    monkeypatch.setattr(demo_verb, "NUM_INFERENCE_STEPS", 1)
    out, whole = tmp_path / "demo", loop.prune_checkpoint

    def stopped(model, folder, *args, **words) -> None:
        if folder.name != "magnitude":
            raise KeyboardInterrupt
        whole(model, folder, *args, **words)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "prune_checkpoint", stopped)
        assert ditprune("demo", "-o", out, "--num-images", 4)[0] == 130
    begun = files_of(out / "magnitude" / "transformer")
    monkeypatch.setattr(collect, "calibrate_folder", lambda *_, **__: pytest.fail("again"))
    for _ in range(2):
        printed = ok(ditprune("demo", "-o", out, "--num-images", 4))
        (out / "grid.png").stat()
    assert files_of(out / "magnitude" / "transformer") == begun
    names = ["dense", "magnitude", "Wanda", "DiT-Pruning"]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in results["models"]] == names
    for name in names[1:]:
        assert re.search(rf"^{name} +0\.5 +0\.50", printed, re.MULTILINE)
        ok(ditprune("verify", out / name))
    for place in ("grid.png", "results.json", "statistics.safetensors", *names[1:]):
        assert str(out / place) in printed


def test_the_installed_command(own_pipeline, tmp_path) -> None:
    script = shutil.which("ditprune", path=str(Path(sys.executable).parent))
    assert script is not None
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, *map(str, args)], capture_output=True, text=True, env=environment,
            cwd=own_pipeline, check=False,
        )  # fmt: skip

    out = tmp_path / "out"
    (own_pipeline / "diffusers.py").write_text("raise SystemExit(9)", encoding="utf-8")
    good = call("prune", ".", "-o", out, "--saliency", "magnitude")
    assert good.returncode == 0, good.stderr
    assert str(out) in good.stdout
    bad = call("verify", own_pipeline)
    assert (bad.returncode, bad.stdout) == (2, "")
    lines = bad.stderr.splitlines()  # among warnings of libraries, perhaps
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in bad.stderr
