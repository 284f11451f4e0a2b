"""A dry run says what a calibration would take, from a few of its own steps; it writes nothing."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from torch import Tensor

from ditprune.calibration.forecast import Forecast, forecast
from ditprune.calibration.pipeline import load_pipeline
from ditprune.calibration.placement import Placement
from ditprune.calibration.sample import Sampling, sample_unit
from ditprune.checkpoints import statistics_file
from ditprune.checkpoints.locate import locate
from ditprune.cli.calibrate import collect
from ditprune.cli.main import run
from folders import files_of

SAMPLING = Sampling(24, num_inference_steps=6, guidance_scale=1.5, batch_size=4)


@pytest.fixture(scope="module")
def expected(tiny_pipeline) -> Forecast:
    model = locate(str(tiny_pipeline))
    return forecast(model, load_pipeline(model), SAMPLING, Placement())


def test_steps_and_sizes_are_those_of_the_run(expected, tiny_pipeline, tmp_path) -> None:
    model = locate(str(tiny_pipeline))
    pipeline, steps = load_pipeline(model), []
    handle = pipeline.transformer.register_forward_hook(lambda *_: steps.append(1))
    units = [sample_unit(pipeline, SAMPLING, unit)[0] for unit in range(SAMPLING.num_units)]
    handle.remove()
    # A run that ends early has begun one step more, which the hook after it does not see.
    assert expected.num_steps == len(steps)
    leaves = [leaf for calls in units for call in calls for leaf in call.leaves()]
    real = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
    assert expected.calls_bytes == pytest.approx(real, rel=0.1)
    collect(model, tmp_path / "s", SAMPLING)
    assert expected.statistics_bytes == sum(t.nbytes for t in load_file(tmp_path / "s").values())
    assert statistics_file.load(tmp_path / "s")


def test_times_and_memory_are_there_and_grow_with_the_samples(expected, tiny_pipeline) -> None:
    assert expected.sampling_s > 0
    assert expected.observing_s > 0
    assert expected.peak_bytes > 10**8  # torch alone
    model = locate(str(tiny_pipeline))
    few = forecast(model, load_pipeline(model), Sampling(2, num_inference_steps=1), Placement())
    assert few.num_steps == 1
    assert few.calls_bytes < expected.calls_bytes


def test_a_dry_run_writes_nothing(own_pipeline, tmp_path, capsys) -> None:
    before = files_of(tmp_path)
    line = ["calibrate", str(own_pipeline), "-o", str(tmp_path / "s"), "--dry-run"]
    line += ["--num-samples", "4", "--num-inference-steps", "2"]
    assert run([*line, "--calibration-set", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "4 samples in 1 sampling runs, 2 denoiser steps: about " in said
    assert "nothing was written" in said
    assert files_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
