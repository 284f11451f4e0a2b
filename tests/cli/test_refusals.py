"""Bad input: exit code 2, one line on stderr that says what to do, and nothing written."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ditprune.calibration import collect, observe_set
from ditprune.checkpoints.shard_writer import ShardWriter
from folders import STEM, Payload, edit_json, edit_tensors, files_of, save_denoiser, save_pipeline


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["prun", "m"], "unknown command 'prun'.*'prune'"),
        (["prune"], "MODEL"),
        (["prune", "m"], "-o"),
        (["prune", "m", "-o", "out", "--sparsit", "1"], "--sparsit"),
        (["prune", "m", "-o", "out", "--sparsity", "half"], "--sparsity 'half': expected a number"),
        (["calibrate", "m", "-o", "s", "--num-samples", "2.5"], "2.5"),
        (["evaluate", "m", "-o", "e"], "PRUNED"),
        (["verify"], "OUT"),
        (["inspect", "m", "extra"], "extra"),
        (["--verbos"], "--verbos"),
    ],
)
def test_a_wrong_command_line(args, match, refused) -> None:
    assert re.search(match, refused(*args))


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--saliency", "wandaa"], "--saliency 'wandaa' is unknown; did you mean 'wanda'"),
        (["--saliency", "zzz"], "choose from magnitude, power, ria, stw, wanda"),
        (["--granularity", "chanel"], "--granularity 'chanel' is unknown; did you mean 'channel'"),
        (["--granularity", "2:4"], "--granularity '2:4' is unknown"),
        (["--sparsity", "1"], r"--sparsity 1.0: .*0 ≤ sparsity < 1"),
        (["--sparsity", "-0.1"], "--sparsity -0.1"),
        (["--sparsity", "50"], "--sparsity 50"),
        (["--sparsity", "nan"], "--sparsity nan"),
        (["--sparsity", "inf"], "--sparsity inf"),
        (["--pattern", "2of4"], "2of4"),
        (["--pattern", "5:4"], "5:4"),
        (["--pattern", "0:4"], "0:4"),
        (["--pattern", "3:5"], r": 3:5 needs .* divisible by 5, got 32; exclude"),
        (["--pattern", "2:4", "--sparsity", "0.5"], "exclude each other"),
        (["--pattern", "2:4", "--granularity", "layer"], "exclude each other"),
        (["--pattern", "2:4", "--cag-threshold", "1"], "exclude each other"),
        (["--cag-threshold", "often"], "--cag-threshold.*often"),
        (["--cag-threshold", "nan"], "--cag-threshold nan"),
        (["--granularity", "layer", "--cag-threshold", "1"], "--cag-threshold does not apply"),
        (["--saliency", "wanda", "--weight-power", "2"], "--weight-power does not apply"),
        (["--saliency", "power"], "--saliency power needs --weight-power"),
        (["--weight-power", "nan"], "nan"),
        (["--include", "*.to_qq"], r"--include '\*\.to_qq' matches none of 21.*\*\.attn1\.to_q"),
        (["--exclude", "nothing"], "--exclude 'nothing' matches none of 21 targets"),
        (["--exclude", "*"], "leave none of 21 targets"),
    ],
    ids=str,
)  # fmt: skip
def test_a_recipe_that_cannot_be(args, match, refused, tiny_pipeline, statistics, tmp_path) -> None:
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--statistics", statistics, *args]
    assert re.search(match, refused(*command))


@pytest.mark.parametrize("saliency", ["stw", "wanda", "ria"])
def test_a_saliency_without_its_statistics(saliency, refused, tiny_pipeline, tmp_path) -> None:
    alone = tiny_pipeline / "transformer"  # without its pipeline nothing can be sampled
    command = ["prune", alone, "-o", tmp_path / "out", "--saliency", saliency]
    assert "run `ditprune calibrate` and pass --statistics" in refused(*command)
    assert "--statistics" in refused(*command, "--dry-run")


def test_statistics_of_another_model(refused, tiny_dit, statistics, tmp_path) -> None:
    other = save_pipeline(tiny_dit(seed=1), tmp_path / "other")
    for command in (["prune", other, "-o", tmp_path / "out"], ["inspect", other]):
        line = refused(*command, "--statistics", statistics)
        assert "made from other weights (21 of 21 targets differ" in line
        assert "calibrate this model" in line


@pytest.mark.parametrize("content", [None, b"", b"garbage", "truncated"])
def test_statistics_that_are_none(content, refused, tiny_pipeline, statistics, tmp_path) -> None:
    file = tmp_path / "s.safetensors"
    if content is not None:
        file.write_bytes(statistics.read_bytes()[:-9] if content == "truncated" else content)
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--statistics", file]
    assert re.search("no such statistics file|not a complete", refused(*command))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ('{"saliency": "stww"}', "did you mean 'stw'"),
        ('{"sparsty": 0.5}', "unknown key 'sparsty'; did you mean 'sparsity'"),
        ('{"sparsity": 2}', "--sparsity 2"),
        ('{"sparsity": "0.5"}', "--sparsity 0.5"),
        ('{"pattern": "2:4", "sparsity": 0.5}', "exclude each other"),
        ('{"recipe": 3}', "expected a JSON object"),
        ('{"include": 3}', "expected globs"),
        ('{"saliency": 3}', "--saliency 3"),
        ('{"weight_power": "two"}', "two"),
    ],
)
def test_a_recipe_file_that_is_none(
    content, match, refused, tiny_pipeline, statistics, tmp_path
) -> None:
    file = tmp_path / "recipe.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--statistics", statistics]
    line = refused(*command, "--recipe", file)
    assert re.search(match, line)
    assert "recipe.json" in line


VERBS = ["inspect", "calibrate", "prune", "verify", "evaluate"]


def command_of(verb: str, model: object, out: Path) -> list[object]:
    """A verb on a model, with what it takes to get to the model."""
    return {
        "inspect": ["inspect", model],
        "calibrate": ["calibrate", model, "-o", out, "--num-samples", 1],
        "prune": ["prune", model, "-o", out, "--saliency", "magnitude"],
        "verify": ["verify", model],
        "evaluate": ["evaluate", model, "bundled", "-o", out, "--num-images", 1],
    }[verb]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "spoil",
    ["nothing", "empty", "file", "hub id", "no config", "broken config", "unknown class",
     "no weights", "truncated", "garbage", "pickle"],
)  # fmt: skip
def test_a_model_that_cannot_be_read(verb, spoil, refused, own_pipeline, tmp_path) -> None:
    weights = own_pipeline / "transformer" / f"{STEM}.safetensors"
    config = own_pipeline / "transformer" / "config.json"
    model: object = own_pipeline
    if spoil == "nothing":
        model, match = tmp_path / "nothing", "no such folder"
    elif spoil == "empty":
        model, match = tmp_path / "empty", "neither model_index.json"
        (tmp_path / "empty").mkdir()
    elif spoil == "file":
        model, match = config, "is a file"
    elif spoil == "hub id":
        model, match = "no-such-owner/no-such-model", "the hub did not give it"
    elif spoil == "no config":
        config.unlink()
        match = r"config\.json"
    elif spoil == "broken config":
        config.write_text("{", encoding="utf-8")
        match = r"config\.json.* (cannot be read as|is not a valid) JSON"
    elif spoil == "unknown class":
        edit_json(config, lambda content: content.update(_class_name="DiTTransformer3DModel"))
        index = own_pipeline / "model_index.json"
        edit_json(index, lambda it: it.update(transformer=["diffusers", "DiTTransformer3DModel"]))
        match = "DiTTransformer3DModel"
    elif spoil == "no weights":
        weights.unlink()
        match = "expected safetensors weights"
    elif spoil in ("truncated", "garbage"):
        weights.write_bytes(weights.read_bytes()[:5000] if spoil == "truncated" else b"x" * 99)
        match = "not a complete safetensors file"
    else:
        weights.with_suffix(".bin").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
        weights.unlink()
        match = "pickle"
    if verb == "verify" and spoil not in ("nothing", "empty", "file", "hub id"):
        match = r"no ditprune\.json"
    assert re.search(match, refused(*command_of(verb, model, tmp_path / "out")))
    assert not (tmp_path / "executed").exists()


def test_a_pickle_in_another_part_of_the_pipeline(refused, own_pipeline, tmp_path) -> None:
    file = own_pipeline / "vae" / f"{STEM}.safetensors"
    file.unlink()
    file.with_suffix(".bin").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    assert "diffusers cannot load it" in refused(
        "calibrate", own_pipeline, "-o", tmp_path / "s.safetensors"
    )
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=str)
@pytest.mark.parametrize("place", ["ours", "theirs", "file", "model", "inside", "above", "."])
def test_an_out_that_cannot_be(
    place, options, ditprune, refused, own_pipeline, pruned, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pruned, tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "letters.txt").touch()
    (tmp_path / "file").touch()
    out = {"model": own_pipeline, "inside": own_pipeline / "out", "above": tmp_path}.get(
        place, Path(place)
    )
    command = ["prune", own_pipeline, "-o", out, "--saliency", "magnitude", *options]
    if place == "ours" and options:
        code, _, err = ditprune(*command)
        assert code == 0, err
    else:
        before = files_of(tmp_path)
        assert re.search(
            "exists|in the model|did not write|not a folder|names no", refused(*command)
        )
        assert files_of(tmp_path) == before


def test_an_empty_out(refused, own_pipeline, tmp_path, monkeypatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refused("prune", own_pipeline, "-o", "", "--saliency", "magnitude", "--overwrite")


def test_an_out_below_a_file(refused, tiny_pipeline, tmp_path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert "out" in refused("prune", tiny_pipeline, "-o", out, "--saliency", "magnitude")
    assert "its folder does not exist" in refused("calibrate", tiny_pipeline, "-o", out)


def test_no_space(refused, tiny_pipeline, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**6, 10**6, 1000))
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude"]
    assert "make room or choose another disk" in refused(*command)


def test_space_that_runs_out_midway(refused, tiny_pipeline, tmp_path, monkeypatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "write", full)
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude"]
    assert "no space left" in refused(*command, midway=True)


TOO_MUCH: dict[str, Callable[..., object]] = {
    "torch": lambda *_: torch.empty(1 << 55, dtype=torch.uint8),
    "numpy": lambda *_: np.empty(1 << 55, np.uint8),
}


@pytest.mark.parametrize("library", TOO_MUCH)
def test_memory_that_runs_out_midway(
    library, refused, tiny_pipeline, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(ShardWriter, "write", TOO_MUCH[library])
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude"]
    assert re.search(r"out of memory \(.*allocate.*\); pass", refused(*command, midway=True))


@pytest.mark.parametrize(
    "said",
    [
        "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.",
        "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 1 MB)",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "std::bad_alloc",
    ],
)
def test_what_other_systems_say_of_it(said, refused, tiny_pipeline, tmp_path, monkeypatch) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(ShardWriter, "write", fail)
    command = ["prune", tiny_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude"]
    assert f"out of memory ({said}); pass" in refused(*command, midway=True)


@pytest.mark.parametrize("where", ["sample_unit", "observe_calls"])
def test_memory_that_runs_out_in_calibration(
    where, ditprune, tiny_pipeline, tmp_path, monkeypatch
) -> None:
    """It is no fault of the calls, and leaves nothing that what is advised would stumble over."""
    out = tmp_path / "own" / "s.safetensors"
    out.parent.mkdir()
    command = ["calibrate", tiny_pipeline, "-o", out, "--num-samples", 4]
    command += ["--num-inference-steps", 2]
    with monkeypatch.context() as patch:
        module = collect if where == "sample_unit" else observe_set
        patch.setattr(module, where, TOO_MUCH["torch"])
        code, _, err = ditprune(*command, "--batch-size", 4)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: out of memory (")
    if where == "observe_calls":  # what was sampled is kept
        command.append("--overwrite")
    else:
        assert not any(out.parent.iterdir())
    code, _, err = ditprune(*command, "--batch-size", 2)
    assert code == 0, err


def test_other_faults_of_a_library_are_not_called_so(
    ditprune, tiny_pipeline, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(ShardWriter, "write", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        ditprune("prune", tiny_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude")


@pytest.mark.parametrize("overwrite", [False, True])
def test_weights_that_hold_nan_are_refused_midway(
    overwrite, refused, own_pipeline, pruned, tmp_path
) -> None:
    name = "transformer_blocks.2.ff.net.2"
    edit_tensors(
        own_pipeline / "transformer" / f"{STEM}.safetensors",
        lambda tensors: tensors[f"{name}.weight"].view(-1)[1200].fill_(float("nan")),
    )
    out = tmp_path / "out"
    command = ["prune", own_pipeline, "-o", out, "--saliency", "magnitude"]
    if overwrite:
        shutil.copytree(pruned, out)
        command.append("--overwrite")
    line = refused(*command, midway=True)
    assert f"{name}: its weight holds NaN or Inf" in line
    assert not overwrite or files_of(out) == files_of(pruned)


BEYOND = {
    "calibrate": [
        ["--num-samples", 10**12], ["--num-samples", 10**20], ["--num-samples", 10**400],
        ["--num-samples", 10**6, "--batch-size", 1], ["--batch-size", 10**6],
        ["--num-inference-steps", 10**9], ["--height", 10**6], ["--width", 10**30],
        ["--num-bins", 10**5], ["--seed", 10**30], ["--labels", "9" * 30],
        ["--guidance-scale", "nan"], ["--guidance-scale", "-inf"], ["--guidance-scale", 1e30],
        ["--max-memory", "9" * 400 + "GB"],
    ],
    "evaluate": [["--num-images", 10**12], ["--num-held-out", 10**12], ["--batch-size", 10**6]],
    "bench": [["--num-tokens", 10**12], ["--time-limit", "inf"], ["--time-limit", "nan"]],
    "prune": [
        ["--packages", 10**12], ["--refinement", "distill,num_steps=1000000000000"],
        ["--refinement", "distill,learning_rate=1e300"], ["--reconstruction", "obs,damping=1e300"],
        ["--reconstruction", "admm,num_steps=1000000000"], ["--cag-threshold", "inf"],
        ["--gram-memory", "9" * 400 + "GB"],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "args"),
    [(verb, args) for verb, rows in BEYOND.items() for args in rows],
    ids=lambda value: str(value)[:40],
)
def test_a_number_beyond_all_bounds_is_refused_at_once(
    verb, args, refused, tiny_pipeline, tmp_path
) -> None:
    start_s = time.monotonic()
    out = [] if verb == "bench" else ["-o", tmp_path / "out"]
    line = refused(verb, tiny_pipeline, *(["m"] if verb == "evaluate" else []), *out, *args)
    assert re.search(r"expected (a|at most|seconds)\b.* (size|number|above|[\d,]+)", line), line
    assert len(line) < 200
    assert time.monotonic() - start_s < 5


@pytest.mark.parametrize("verb", ["calibrate", "evaluate"])
def test_a_pipeline_that_raises_while_it_draws(verb, refused, tiny_pipeline, tmp_path) -> None:
    """DDIM has a thousand steps; its own error is a ValueError."""
    pruned = [tiny_pipeline] if verb == "evaluate" else []
    line = refused(verb, tiny_pipeline, *pruned, "-o", tmp_path / "e", "--num-inference-steps",
                   1001)  # fmt: skip
    assert re.search("DiTPipeline failed .*1000 timesteps.*num_inference_steps=1001", line)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--num-samples", 0], "--num-samples 0: expected at least 1"),
        (["--num-inference-steps", 0], "--num-inference-steps 0"),
        (["--timesteps", "erly"], "--timesteps 'erly' is unknown; did you mean 'early'"),
        (["--labels", "1,a"], "--labels '1,a': expected class ids"),
        (["--labels", ""], "--labels ''"),
        (["--labels", "-1"], "--labels -1: expected class ids from 0 to 999"),
        (["--labels", "1000"], "--labels 1000"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
    ids=str,
)
def test_a_calibration_that_cannot_be(args, match, refused, tiny_pipeline, tmp_path) -> None:
    assert match in refused("calibrate", tiny_pipeline, "-o", tmp_path / "s.safetensors", *args)


def test_prompts_for_a_model_of_labels(refused, tiny_pipeline, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n", encoding="utf-8")
    command = ["calibrate", tiny_pipeline, "-o", tmp_path / "s", "--prompts"]
    assert "pass --labels, not --prompts" in refused(*command, tmp_path / "prompts.txt")
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    assert "blank.txt" in refused(*command, tmp_path / "blank.txt")


def test_statistics_that_exist(refused, ditprune, tiny_pipeline, statistics, tmp_path) -> None:
    file = tmp_path / "s.safetensors"
    file.write_bytes(b"old")
    command = ["calibrate", tiny_pipeline, "-o", file, "--num-samples", 1]
    command += ["--num-inference-steps", 1]
    assert "exists; choose another name or pass --overwrite" in refused(*command)
    assert file.read_bytes() == b"old"
    assert "is a folder" in refused("calibrate", tiny_pipeline, "-o", tmp_path, "--overwrite")
    code, _, err = ditprune(*command, "--overwrite")
    assert code == 0, err
    assert file.read_bytes() != b"old"


def test_a_bare_denoiser_cannot_be_sampled(refused, tiny_dit, tmp_path) -> None:
    folder = save_denoiser(tiny_dit(), tmp_path / "m")
    assert "needs its pipeline" in refused("calibrate", folder, "-o", tmp_path / "s")
    assert "needs its pipeline" in refused("evaluate", folder, folder, "-o", tmp_path / "e")


def test_a_calibration_set_that_is_none(refused, tiny_pipeline, tmp_path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "calls.json").write_text(json.dumps({"format": 1}), encoding="utf-8")
    command = ["calibrate", tiny_pipeline, "-o", tmp_path / "s", "--calibration-set"]
    assert "not a calibration set" in refused(*command, tmp_path / "set")


def test_a_calibration_set_of_another_kind_of_model(refused, tiny_pipeline, tmp_path) -> None:
    from ditprune.calls import Call
    from ditprune.checkpoints.calibration_set import save_calibration_set

    save_calibration_set([Call((torch.zeros(1, 3),))], {}, tmp_path / "set")
    command = ["calibrate", tiny_pipeline, "-o", tmp_path / "s", "--calibration-set"]
    refused(*command, tmp_path / "set")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--num-images", 0], "--num-images 0: expected at least 1"),
        (["--num-held-out", 0], "--num-held-out 0"),
        (["--batch-size", -1], "--batch-size -1"),
        (["--num-inference-steps", 0], "--num-inference-steps 0"),
        (["--labels", "x"], "--labels 'x'"),
    ],
    ids=str,
)
def test_an_evaluation_that_cannot_be(
    args, match, refused, tiny_pipeline, pruned, tmp_path
) -> None:
    command = ["evaluate", tiny_pipeline, pruned, "-o", tmp_path / "e"]
    assert match in refused(*command, *args)


SMALL = ["--num-images", 2, "--num-held-out", 2, "--num-inference-steps", 1]


def test_models_that_would_share_a_name(refused, tiny_pipeline, pruned, tmp_path) -> None:
    command = ["evaluate", tiny_pipeline, pruned, pruned, "-o", tmp_path / "e", *SMALL]
    assert "two models would be called the same" in refused(*command)


def test_an_evaluation_into_a_file(refused, tiny_pipeline, pruned, tmp_path) -> None:
    (tmp_path / "e").touch()
    assert str(tmp_path / "e") in refused(
        "evaluate", tiny_pipeline, pruned, "-o", tmp_path / "e", *SMALL
    )


def test_a_demo_into_a_file(refused, tmp_path) -> None:
    (tmp_path / "d").touch()
    assert str(tmp_path / "d") in refused("demo", "-o", tmp_path / "d")


@pytest.mark.parametrize("args", [["--sparsity", 1], ["--num-images", 0]], ids=str)
def test_a_demo_that_cannot_be(args, refused, tmp_path) -> None:
    assert str(args[0]) in refused("demo", "-o", tmp_path / "d", *args)


def test_an_evaluation_against_another_kind_of_model(refused, tiny_pipeline, tmp_path) -> None:
    from diffusers import DiTTransformer2DModel

    command = ["evaluate", tiny_pipeline, tiny_pipeline / "vae", "-o", tmp_path / "e", *SMALL]
    assert "class 'AutoencoderKL' is no denoiser of diffusers" in refused(*command)
    wide = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=16, num_layers=1, in_channels=6, out_channels=6,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    save_denoiser(wide, tmp_path / "wide")
    command[2] = tmp_path / "wide"
    refused(*command)


def test_an_evaluation_of_a_broken_manifest(refused, tiny_pipeline, pruned, tmp_path) -> None:
    folder = shutil.copytree(pruned, tmp_path / "p")
    file = folder / "transformer" / "ditprune.json"
    edit_json(file, lambda claims: claims.pop("recipe"))
    command = ["evaluate", tiny_pipeline, folder, "-o", tmp_path / "e", *SMALL]
    assert "cannot be read" in refused(*command)
    shutil.copy(pruned / "transformer" / "ditprune.json", file)
    edit_json(file, lambda claims: claims["targets"].update(ghost={}))
    assert "ghost" in refused(*command)


def test_verify_without_a_manifest(refused, tiny_pipeline) -> None:
    assert "no ditprune.json; expected a folder that `ditprune prune` wrote" in refused(
        "verify", tiny_pipeline
    )
