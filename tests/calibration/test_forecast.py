"""A dry run says what a calibration would take, from a few of its own steps; it writes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ditprune.calibration import forecast as forecast_module
from ditprune.calibration.collect import calibrate_folder
from ditprune.calibration.forecast import CalibrationForecast, forecast_calibration
from ditprune.calibration.sample import Sampling, sample_unit
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import HEADER, load_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.skeleton import module_fingerprints
from ditprune.checkpoints.statistics_file import read_statistics_file
from ditprune.cli.main import run
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.targets.discover import discover
from folders import edit_json, files_of

SAMPLING = Sampling(24, num_inference_steps=6, guidance_scale=1.5, batch_size=4)


@pytest.fixture(scope="module")
def expected(tiny_pipeline) -> CalibrationForecast:
    return forecast_calibration(locate(str(tiny_pipeline)), SAMPLING, Placement())


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
    calibrate_folder(model, tmp_path / "s", SAMPLING)
    assert expected.statistics_bytes == sum(t.nbytes for t in load_file(tmp_path / "s").values())
    assert read_statistics_file(tmp_path / "s")


def test_times_and_memory_are_there_and_grow_with_the_samples(expected, tiny_pipeline) -> None:
    assert expected.sampling_s > 0
    assert expected.observing_s > 0
    assert expected.peak_bytes > 10**8  # torch alone
    model = locate(str(tiny_pipeline))
    few = forecast_calibration(model, Sampling(2, num_inference_steps=1), Placement())
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


class TakesLists(nn.Module):
    """Takes its sample as a list with a tensor for each row, as Z-Image does."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.to_q, block.to_k, block.to_v = (nn.Linear(4, 4) for _ in range(3))
        self.blocks = nn.ModuleList([block])
        self.seen: set[tuple[int, ...]] = set()

    def forward(self, x: list[Tensor], t: Tensor) -> Tensor:
        self.seen.add((len(t), len(x), *x[0].shape))
        block, rows = self.blocks[0], torch.stack(x)
        return block.to_q(rows) + block.to_k(rows) + block.to_v(rows)


def test_items_share_calls_as_they_will_where_the_sample_is_a_list(monkeypatch) -> None:
    denoiser = TakesLists()
    own = module_fingerprints(denoiser, discover(denoiser).values())
    monkeypatch.setattr(forecast_module, "folder_fingerprints", lambda _folder, _blocks: own)
    call = Call(([torch.zeros(3, 4), torch.zeros(3, 4)],), {"t": torch.zeros(2)}, 0.05)
    model = SimpleNamespace(denoisers={"transformer": None})
    pipeline, sampling = SimpleNamespace(transformer=denoiser), Sampling(4, num_bins=1)
    _, num_shared, size_bytes = forecast_module._observe(
        model, pipeline, [call], sampling, Placement()
    )
    assert (num_shared, size_bytes) == (4, 2 * 4 * 8)  # two bins of four channels, shared
    assert denoiser.seen == {(8, 8, 3, 4)}


@pytest.fixture
def line(own_pipeline, tmp_path) -> list[object]:
    """A calibration of two sampling runs whose set is complete."""
    command = ["calibrate", own_pipeline, "--num-samples", 4, "--batch-size", 2]
    command += ["--num-inference-steps", 2, "--calibration-set", tmp_path / "set", "-o"]
    assert run([str(word) for word in [*command, tmp_path / "first"]]) == 0
    return command


def test_what_a_complete_set_saves_is_not_forecast(line, ditprune, tmp_path, monkeypatch) -> None:
    before = files_of(tmp_path)
    monkeypatch.setattr("ditprune.calibration.forecast.load_pipeline", None)
    code, said, err = ditprune(*line, tmp_path / "s", "--dry-run")
    assert code == 0, err
    assert f"sampling: nothing, the calibration set {tmp_path / 'set'} is complete" in said
    assert "denoiser steps" not in said
    assert files_of(tmp_path) == before
    bare = [line[0], tmp_path / "model" / "transformer", *line[-3:]]
    assert "nothing was written" in ditprune(*bare, tmp_path / "s", "--dry-run")[1]
    call_set, model = load_calibration_set(tmp_path / "set"), locate(str(tmp_path / "model"))
    expected = forecast_calibration(model, SAMPLING, Placement(), call_set)
    assert (expected.sampling_s, expected.num_steps, expected.calls_bytes) == (0, 0, 0)
    assert expected.observing_s > 0
    tensors = load_file(tmp_path / "first").values()
    assert expected.statistics_bytes == sum(tensor.nbytes for tensor in tensors)


def test_what_is_left_of_a_set_is_forecast(line, ditprune, tmp_path) -> None:
    load_calibration_set(tmp_path / "set").file(1).unlink()
    said = ditprune(*line, tmp_path / "s", "--dry-run")[1]
    assert "2 samples in 1 of 2 sampling runs, 2 denoiser steps: about " in said
    assert "observing all 4: about " in said


def test_a_dry_run_refuses_what_the_run_would(line, ditprune, tmp_path) -> None:
    def refused(*words: object) -> str:
        before = files_of(tmp_path)
        said = [ditprune(*words), ditprune(*words, "--dry-run")]
        assert files_of(tmp_path) == before
        assert said[0] == said[1]
        assert said[0][0] == 2
        return str(said[0][2])

    assert "first: exists; choose another name" in refused(*line, tmp_path / "first")
    assert "nowhere" in refused(*line, tmp_path / "nowhere" / "s")
    assert "--seed: the calibration set" in refused(*line, tmp_path / "s", "--seed", 1)
    inside = [*line[:-3], "--labels", "1", "-o", tmp_path / "model" / "s"]
    assert "lies in the model" in refused(*inside)
    assert "is a bare denoiser" in refused(
        "calibrate", tmp_path / "model" / "transformer", "-o", tmp_path / "s"
    )
    load_calibration_set(tmp_path / "set").file(0).unlink()
    assert "was begun with other settings" in refused(*line, tmp_path / "s", "--seed", 1)
    edit_json(tmp_path / "set" / HEADER, lambda header: header.update(format=1))
    assert "not a calibration set" in refused(*line, tmp_path / "s")
    assert "first" in ditprune(*line[:-3], "-o", tmp_path / "first", "--dry-run")[2]
    assert ditprune(*line[:-3], "-o", tmp_path / "first", "--dry-run", "--overwrite")[0] == 0


def test_on_windows_the_peak_is_what_windows_says(monkeypatch) -> None:
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123_456))
    monkeypatch.setattr(forecast_module.sys, "platform", "win32")
    monkeypatch.setattr(forecast_module.psutil, "Process", lambda: process)
    assert forecast_module._peak_bytes(Placement.of("cpu")) == 123_456
