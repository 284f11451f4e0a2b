"""Several processes share one calibration: whatever their number, the file is the same bytes.

So it is under another hash seed, locale, time zone and umask, and what is pruned with it too. Every
process imports torch, so one launch calibrates several models in turn.
"""

from __future__ import annotations

import json
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
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.statistics_file import read_statistics_file
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from folders import files_of, save_pipeline
from tiny_denoisers import FAMILIES, Draw
from tiny_pipelines import PIPELINES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LAUNCHERS = {
    "torchrun": [
        "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node",
    ],
    # Its word for several processes on one machine; no GPU is used, nor needed.
    "accelerate": [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes",
    ],
}  # fmt: skip
# Calibrates several models as one member of a group, which a process joins once.
SEVERAL = """
import json, sys, time
from contextlib import suppress
from pathlib import Path
from ditprune.calibration.sample import Sampling
from ditprune.calibration.workers import joined
from ditprune.checkpoints.locate import locate
from ditprune.calibration.collect import calibrate_folder
from ditprune.checkpoints.calibration_set import load_calibration_set
from ditprune.checkpoints.statistics_file import read_statistics_file
from ditprune.denoiser.placement import Placement
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.update.folder import Source
with joined() as worker:
    for model, out, words, kept in json.loads(sys.argv[1]):
        folder = None if kept is None else Path(kept)
        calibrate_folder(
            locate(model), Path(out), Sampling(**words), set_folder=folder, worker=worker
        )
        if worker.is_first and Path(out).name == "wide":
            prune_checkpoint(
                locate(model), Path(out + " pruned"), read_statistics_file(Path(out)),
                build(reconstruction="obs", allocation="proxy"),
                source=Source(load_calibration_set(folder), Placement()),
            )
def threads():
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has ended
            yield task.joinpath("comm").read_text()
deadline = time.monotonic() + 20
while any("gloo" in name for name in threads()):  # they abort when Python exits
    assert time.monotonic() < deadline, list(threads())
    time.sleep(0.1)
"""
DIT = {"num_samples": 9, "num_inference_steps": 2, "batch_size": 2}
TWO_UNITS = {"num_samples": 2, "num_inference_steps": 2, "batch_size": 1}
# Of one process, of two and of three.
ENVIRONMENTS = {
    1: {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    2: {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Kathmandu"},
    3: {"PYTHONHASHSEED": "2", "LC_ALL": "de_DE.UTF-8", "TZ": "America/St_Johns"},
}
UMASKS = {1: 0o022, 2: 0o077, 3: 0o027}
VIDEO = {"height": 32, "width": 32, "pipeline_options": {"num_frames": 9}}


def launch(num_processes: int, *program: str, launcher: str = "torchrun") -> Any:
    """Runs a Python program in this many processes."""
    start = [] if num_processes == 1 else [*LAUNCHERS[launcher], str(num_processes)]
    return subprocess.run(
        [sys.executable, *start, *program],
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo",
            **ENVIRONMENTS[num_processes],
        },
        umask=UMASKS[num_processes], capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def calibrate_all(num_processes: int, models: dict[str, Path], at: Path) -> None:
    """Five units of DiT, two of Wan (one for each denoiser), a set of Qwen-Image.

    And five of a DiT with wide amplitudes, which is pruned.
    """
    words = {"dit": DIT, "wan": TWO_UNITS | VIDEO, "qwen": TWO_UNITS, "wide": DIT}
    sets = {"qwen": str(models["qwen"].with_name("set")), "wide": str(at / "wide set")}
    jobs = [
        (str(folder), str(at / name), words[name], sets.get(name))
        for name, folder in models.items()
    ]
    script = at / "several.py"
    script.write_text(SEVERAL, encoding="utf-8")
    done = launch(num_processes, str(script), json.dumps(jobs))
    assert done.returncode == 0, done.stderr[-3000:]
    script.unlink()


def command(model: Path, out: Path) -> list[str]:
    """The five units of DiT by command line."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in DIT.items()]
    return ["-m", "ditprune", "calibrate", str(model), "-o", str(out), *options]


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
    """What one process writes."""
    at = tmp_path_factory.mktemp("alone")
    calibrate_all(1, models, at)
    return at


@pytest.mark.parametrize("num_processes", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    num_processes, models, alone, tmp_path
) -> None:
    """Three processes are more than the two units of Wan and Qwen-Image."""
    calibrate_all(num_processes, models, tmp_path)
    for name in models:
        one, many = (read_statistics_file(at / name) for at in (alone, tmp_path))
        assert {d: s.unused for d, s in many.items()} == {d: s.unused for d, s in one.items()}
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {*models, "wide set", "wide pruned"}
    for folder in ("wide set", "wide pruned"):
        assert files_of(tmp_path / folder) == files_of(alone / folder)
    assert_same_masks(models, alone, tmp_path)


def assert_same_masks(models: dict[str, Path], one: Path, other: Path) -> None:
    """Of every file of the pruned folder each byte."""
    pruned = [other / "pruned by one", other / "pruned by several"]
    for out, at in zip(pruned, (one, other), strict=True):
        prune_checkpoint(locate(str(models["dit"])), out, read_statistics_file(at / "dit"), build())
    assert files_of(pruned[0]) == files_of(pruned[1])


def test_the_models_have_what_can_go_wrong(alone) -> None:
    of = {name: read_statistics_file(alone / name) for name in ("dit", "wan", "qwen", "wide")}
    assert list(of["wan"]) == ["transformer", "transformer_2"]
    assert [one.num_calls for one in of["wan"].values()] == [2, 2]  # condition and none
    assert of["qwen"]["transformer"].unused
    assert of["dit"]["transformer"].num_calls == 5
    squares = of["wide"]["transformer"].column_norms["transformer_blocks.0.ff.net.2"].sum_squares
    assert squares.max() > 1e12 * squares[squares > 0].min()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_command_line_is_launched(launcher, models, alone, tmp_path) -> None:
    done = launch(2, *command(models["dit"], tmp_path / "dit"), launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("statistics: ") == 1  # one of them speaks
    assert (tmp_path / "dit").read_bytes() == (alone / "dit").read_bytes()


def test_a_refusal_is_said_and_ends_every_process(models, tmp_path) -> None:
    """The first process refuses what it finds; the others must not wait for it for ever."""
    out = tmp_path / "dit"
    out.touch()
    done = launch(2, *command(models["dit"], out))
    assert done.returncode != 0
    assert f"error: {out}: exists; choose another name or pass --overwrite" in done.stderr


def test_units_are_dealt_in_turn() -> None:
    workers = [Worker(rank, 3) for rank in range(3)]
    dealt = [[unit for unit in range(7) if worker.owns(unit)] for worker in workers]
    assert dealt == [[0, 3, 6], [1, 4], [2, 5]]
    assert [worker.is_first for worker in workers] == [True, False, False]
