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

STATUS = Path("/proc/self/status")
MEASURE = """
import re, sys
from pathlib import Path
from ditprune.checkpoints.locate import locate
from ditprune.pruning.forecast import forecast_run
from ditprune.pruning.job import open_jobs
from ditprune.pruning.loop import prune_checkpoint
from ditprune.method.words import build
model, recipe = locate(sys.argv[1]), build(saliency="magnitude", granularity=sys.argv[3])
if sys.argv[2] == "estimate":
    print(forecast_run(model, open_jobs(model, None, recipe), Path(sys.argv[4])).peak_bytes)
else:
    prune_checkpoint(model, Path(sys.argv[4]) / "out", None, recipe)
    # Not ru_maxrss, which begins with what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)
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


@pytest.mark.skipif(
    not STATUS.exists() or "VmHWM" not in STATUS.read_text(), reason="reads peaks from Linux"
)
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_the_peak_of_memory(granularity, wide, tmp_path) -> None:
    def run(what: str) -> int:
        command = [sys.executable, "-c", MEASURE, str(wide), what, granularity, str(tmp_path)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    expected, peak = run("estimate"), run("prune")
    assert 0.7 * peak < expected < 1.3 * peak


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
