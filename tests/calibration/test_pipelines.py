"""Calibration over every style of pipeline: the calls it takes, their style, and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ditprune.calibration.calibrate import observe_calls
from ditprune.calibration.sample import Sampling, sample_unit
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import start_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.denoiser.capture import recorded
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.rows import num_rows
from ditprune.denoiser.steps import Style
from tiny_pipelines import FACTS, PIPELINES, Facts

# A warning of diffusers' DPM-Solver about its own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@dataclass(frozen=True)
class Sampled:
    """Six samples of one pipeline, in units of three."""

    facts: Facts
    folder: Path
    pipeline: Any
    units: list[tuple[list[Call], Style]]

    @property
    def calls(self) -> list[Call]:
        return [call for calls, _ in self.units for call in calls]


def sampling_of(facts: Facts) -> Sampling:
    options = dict(facts.options)
    negative = {} if facts.negative_prompt is None else {"negative_prompt": facts.negative_prompt}
    return Sampling(
        6,
        num_inference_steps=4,
        batch_size=3,
        height=options.pop("height", None),
        width=options.pop("width", None),
        pipeline_options=options | negative,
    )


@pytest.fixture(scope="module", params=PIPELINES)
def sampled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    facts = FACTS[request.param]
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    PIPELINES[request.param]().save_pretrained(folder)
    model = locate(str(folder))
    assert tuple(model.denoisers) == facts.denoisers
    pipeline = load_pipeline(model)
    sampling = sampling_of(facts)
    units = [sample_unit(pipeline, sampling, unit, facts.denoisers) for unit in (0, 1)]
    return Sampled(facts, folder, pipeline, units)


def test_the_style_is_the_pipelines(sampled: Sampled) -> None:
    facts = sampled.facts
    for _, style in sampled.units:
        assert style.rows_per_image == facts.rows_per_image
        assert style.calls_per_step == facts.calls_per_step
        assert style.guidance_argument == facts.guidance_embedding
        assert style.timestep_scale == facts.timestep_scale
        assert style.timestep_falls == (not facts.timestep_rises)


def test_every_item_is_there_with_all_its_rows(sampled: Sampled) -> None:
    facts = sampled.facts
    for calls, _ in sampled.units:
        assert sum(num_rows(call) for call in calls) == 3 * facts.rows_per_image * (
            facts.calls_per_step
        )
    # Items 0–2 want steps 0, 1, 1 of four, and 3–5 want 2, 3, 3.
    places = [sorted({call.place for call in calls}) for calls, _ in sampled.units]
    assert places == [[0.125, 0.375], [0.625, 0.875]]
    assert {call.denoiser for call in sampled.calls} == set(facts.denoisers)


def test_a_pipelines_own_calls_are_what_is_taken(sampled: Sampled) -> None:
    """The second item of the first unit, at its step, as a plain hook sees the batch."""
    facts = sampled.facts
    first = sampled.units[0][0][0]
    denoiser = getattr(sampled.pipeline, first.denoiser)
    with recorded(denoiser) as calls:
        sample_unit(sampled.pipeline, sampling_of(facts), 0, facts.denoisers)
    rows = [row for call in calls[: facts.calls_per_step] for row in rows_of(call)]
    taken = [row for call in sampled.units[0][0][: facts.calls_per_step] for row in rows_of(call)]
    # The first step's item is row 0 of the batch, guided rows follow batches.
    expected = rows[0::3]
    assert len(taken) == len(expected) == facts.rows_per_image * facts.calls_per_step
    for one, two in zip(taken, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def rows_of(call: Call) -> list[Tensor]:
    """The rows of the noisy sample."""
    first = call.args[0] if call.args else call.kwargs["hidden_states"]
    return list(first)


def test_a_set_on_disk_gives_the_same_statistics(sampled: Sampled, tmp_path) -> None:
    kept = start_calibration_set(tmp_path / "set", 2, {}, {})
    for number, (calls, _) in enumerate(sampled.units):
        kept.write(number, calls, {})
    read = [call for unit in (0, 1) for call in kept.read(unit)[0]]
    for name, folder in locate(str(sampled.folder)).denoisers.items():
        own = folder_fingerprints(folder)
        denoiser = getattr(sampled.pipeline, name)
        direct, again = (
            observe_calls(denoiser, [c for c in calls if c.denoiser == name], own)
            for calls in (sampled.calls, read)
        )
        assert set(direct.column_norms) | set(direct.never_called) == set(own)
        assert len(direct.column_norms) > 0.7 * len(own)
        assert direct.num_tokens(next(iter(direct.column_norms))) > 0
        for layer, state in direct.column_norms.items():
            assert state.sum_squares.isfinite().all()
            # What comes from disk is contiguous, which may sum in another order.
            torch.testing.assert_close(
                again.column_norms[layer].sum_squares, state.sum_squares, rtol=1e-5, atol=0
            )
            assert len(state.tokens_in_bin) == 11
            assert state.tokens_in_bin[-1] == 0


def test_nothing_is_sampled_beyond_what_is_wanted(sampled: Sampled) -> None:
    steps: set[tuple[float, ...]] = set()
    handles = [
        getattr(sampled.pipeline, name).register_forward_hook(
            lambda _m, args, kwargs, _o: steps.add(extremes(args, kwargs)), with_kwargs=True
        )
        for name in sampled.facts.denoisers
    ]
    sample_unit(sampled.pipeline, sampling_of(sampled.facts), 0, sampled.facts.denoisers)
    for handle in handles:
        handle.remove()
    assert len(steps) == 2


def extremes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
    timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
    return (timestep.min().item(), timestep.max().item())
