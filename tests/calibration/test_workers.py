"""Several processes share one calibration: whatever their number, the file is the same bytes.

So it is under another hash seed, locale, time zone and umask, and what is pruned with it too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.calibration.workers import Worker
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import start_calibration_set
from ditprune.checkpoints.statistics_file import read_statistics_file
from ditprune.cli.main import run
from folders import files_of, save_pipeline
from process_groups import ENVIRONMENT, Group, needs_fork, run_groups
from tiny_denoisers import FAMILIES, Draw
from tiny_pipelines import PIPELINES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Its word for several processes on one machine; no GPU is used, nor needed.
ACCELERATE = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2",
]  # fmt: skip
DIT = {"num_samples": 9, "num_inference_steps": 2, "batch_size": 2}
TWO_UNITS = {"num_samples": 2, "num_inference_steps": 2, "batch_size": 1}
# The tests' own process has another hash seed, and the user's locale, time zone and umask.
ELSEWHERE = {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}
UMASKS = {2: 0o077, 3: 0o027}
# What the pipelines import, once.
PREPARE = "import transformers; from diffusers import WanPipeline, QwenImagePipeline"
VIDEO = {"height": 32, "width": 32, "pipeline_option": "num_frames=9"}


def lines(models: dict[str, Path], at: Path) -> list[list[str]]:
    """Two units of Wan (one for each denoiser), a set of Qwen-Image, and five units of a DiT.

    Its amplitudes are wide, and it is pruned.
    """
    words = {"wan": TWO_UNITS | VIDEO, "qwen": TWO_UNITS, "wide": DIT}
    sets = {"qwen": str(models["qwen"].with_name("set")), "wide": str(at / "wide set")}
    calibrations = [
        calibrate(models[name], at / name, words[name], sets.get(name)) for name in words
    ]
    pruning = [
        "prune", str(models["wide"]), "-o", str(at / "wide pruned"), "--reconstruction", "obs",
        "--statistics", str(at / "wide"), "--calibration-set", sets["wide"],
        "--allocation", "proxy",
    ]  # fmt: skip
    return [*calibrations, pruning]


def calibrate(
    model: Path, out: Path, words: dict[str, Any] = DIT, kept: str | None = None
) -> list[str]:
    """The words of the command line."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in words.items()]
    options += [] if kept is None else ["--calibration-set", kept]
    return ["calibrate", str(model), "-o", str(out), *options]


@pytest.fixture(scope="module")
def models(tiny_pipeline, tiny_dit, tmp_path_factory) -> dict[str, Path]:
    """One denoiser; two, of which each unit reaches one; one that runs layers in vain.

    The set of the last has nothing in the unit that falls to the first process.
    """
    at = tmp_path_factory.mktemp("workers")
    for name, key in (("wan", "WanPipeline, two denoisers"), ("qwen", "QwenImagePipeline")):
        PIPELINES[key]().save_pretrained(at / name)
    kept = start_calibration_set(at / "set", 2, {}, {})
    call = FAMILIES["QwenImageTransformer2DModel"].call(Draw(0))
    kept.write(0, [], {})
    kept.write(1, [Call((), call, 0.5)], {})
    wide = save_pipeline(widened(tiny_dit()), at / "wide")
    return {"dit": tiny_pipeline, "wan": at / "wan", "qwen": at / "qwen", "wide": wide}


def widened(denoiser: Any) -> Any:
    """Inputs of layers over six orders of magnitude: from class to class, and along channels."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in denoiser.transformer_blocks:
            table = block.norm1.emb.class_embedder.embedding_table.weight
            for weight in (table, block.attn1.to_v.weight, block.ff.net[0].proj.weight):
                order = torch.randperm(len(weight), generator=generator)
                weight *= torch.logspace(-3.5, 3.5, len(weight))[order, None]
    return denoiser


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory) -> Path:
    """What one process writes: this one."""
    at = tmp_path_factory.mktemp("alone")
    for line in (calibrate(models["dit"], at / "dit"), *lines(models, at)):
        assert run(line) == 0
    return at


@needs_fork
def test_the_bytes_do_not_depend_on_the_number_of_processes(models, alone, tmp_path) -> None:
    """Three processes are more than the two units of Wan and Qwen-Image."""
    groups, places = [], {world: tmp_path / f"of {world}" for world in UMASKS}
    for world, at in places.items():
        at.mkdir()
        *calibrations, pruning = lines(models, at)
        groups += [Group(line, world, umask=UMASKS[world]) for line in calibrations]
        groups.append(Group(pruning, 1, umask=UMASKS[world]))
    (there := tmp_path / "there").touch()
    groups.append(Group(calibrate(models["dit"], there), 2))
    *ended, refused = run_groups(groups, ELSEWHERE, PREPARE)
    assert refused.codes == [2, 2]  # one must not wait for the other
    assert f"error: {there}: exists; choose another name or pass --overwrite" in refused.err
    for group, end in zip(groups[:-1], ended, strict=True):
        assert end.codes == [0] * group.world, end.err
        assert end.out.count(f"{group.words[3]}\n") == 1  # one of them speaks
    for at in places.values():
        assert_same_files(alone, at)


def assert_same_files(alone: Path, at: Path) -> None:
    for name in ("wan", "qwen", "wide"):
        one, many = (read_statistics_file(folder / name) for folder in (alone, at))
        assert {d: s.unused for d, s in many.items()} == {d: s.unused for d, s in one.items()}
        assert (at / name).read_bytes() == (alone / name).read_bytes(), name
    assert {path.name for path in at.iterdir()} == {
        "wan",
        "qwen",
        "wide",
        "wide set",
        "wide pruned",
    }
    for folder in ("wide set", "wide pruned"):
        assert files_of(at / folder) == files_of(alone / folder)


def test_the_models_have_what_can_go_wrong(alone) -> None:
    of = {name: read_statistics_file(alone / name) for name in ("dit", "wan", "qwen", "wide")}
    assert list(of["wan"]) == ["transformer", "transformer_2"]
    assert [one.num_calls for one in of["wan"].values()] == [2, 2]  # condition and none
    assert of["qwen"]["transformer"].unused
    assert of["dit"]["transformer"].num_calls == 5
    squares = of["wide"]["transformer"].column_norms["transformer_blocks.0.ff.net.2"].sum_squares
    assert squares.max() > 1e12 * squares[squares > 0].min()


def test_accelerate_launches_the_command_line(models, alone, tmp_path) -> None:
    """`torchrun` is launched in `test_blocks_shared.py`."""
    line = calibrate(models["dit"], tmp_path / "dit")
    done = subprocess.run(
        [sys.executable, *ACCELERATE, "-m", "ditprune", *line],
        env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("statistics: ") == 1
    assert (tmp_path / "dit").read_bytes() == (alone / "dit").read_bytes()


def test_units_are_dealt_in_turn() -> None:
    workers = [Worker(rank, 3) for rank in range(3)]
    dealt = [[unit for unit in range(7) if worker.owns(unit)] for worker in workers]
    assert dealt == [[0, 3, 6], [1, 4], [2, 5]]
    assert [worker.is_first for worker in workers] == [True, False, False]
