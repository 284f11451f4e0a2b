"""What a run is expected to take, against what it takes; time is a bench, not a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.method.words import build
from ditprune.pruning.forecast import forecast_run
from ditprune.pruning.job import open_jobs
from ditprune.pruning.loop import prune_checkpoint
from folders import files_of, save_denoiser

MEASURE = """
import os, re, sys
from pathlib import Path
from ditprune.checkpoints.locate import locate
from ditprune.pruning.forecast import forecast_run
from ditprune.pruning.job import open_jobs
from ditprune.pruning.loop import prune_checkpoint
from ditprune.method.words import build
model, at = locate(sys.argv[1]), Path(sys.argv[2])
for granularity in sys.argv[3:]:
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        continue
    recipe = build(saliency="magnitude", granularity=granularity)
    expected = forecast_run(model, open_jobs(model, None, recipe), at).peak_bytes
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    prune_checkpoint(model, at / granularity, None, recipe)
    # Not ru_maxrss, which begins with what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    print(expected, int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Targets of 100 MB: beside them the libraries count for little."""
    from diffusers import DiTTransformer2DModel

    denoiser = DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=128, num_layers=1, in_channels=4,
        out_channels=4, sample_size=8, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    return save_denoiser(denoiser, tmp_path_factory.mktemp("wide") / "m")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks from Linux")
def test_the_peak_of_memory(wide, tmp_path) -> None:
    """By layers and by channels, each in a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(wide), str(tmp_path), "layer", "channel"]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    lines = printed.splitlines()
    assert len(lines) == 2
    for line in lines:
        expected, peak = map(int, line.split())
        assert 0.7 * peak < expected < 1.3 * peak, line


@pytest.mark.parametrize("words", [{}, {"pattern": "2:4"}, {"granularity": "channel"}], ids=str)
def test_the_bytes_are_exact_and_nothing_stays(words, tiny_pipeline, tiny_stats, tmp_path) -> None:
    model, recipe, stats = locate(str(tiny_pipeline)), build(**words), {"transformer": tiny_stats}
    before = files_of(tiny_pipeline)
    expected = forecast_run(model, open_jobs(model, stats, recipe), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert files_of(tiny_pipeline) == before
    assert expected.seconds > 0
    prune_checkpoint(model, tmp_path / "out", stats, recipe)
    written = files_of(tmp_path / "out")
    manifest = written.pop("transformer/ditprune.json")
    assert b"ditprune" in written.pop("README.md")
    assert json.loads(manifest)["recipe"] == recipe.to_json()
    assert expected.num_bytes == sum(map(len, written.values()))


def test_without_statistics_magnitude_stands_in(tiny_pipeline, tmp_path) -> None:
    model = locate(str(tiny_pipeline))
    jobs = open_jobs(model, None, build())
    assert forecast_run(model, jobs, tmp_path).seconds > 0
