"""A `max_error` in place of a share: the largest share below it, measured on rows kept aside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ditprune
from ditprune import bundled
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.calls import Call
from ditprune.cli.plans import error_lines
from ditprune.denoiser.replay import relative_error
from ditprune.denoiser.rows import num_rows
from ditprune.errors import ModelError, RecipeError, StatisticsError
from ditprune.evaluation.held_out import predictions
from ditprune.method.distill import Distill
from ditprune.method.words import build
from ditprune.pruning.update import budgets, share, update
from ditprune.pruning.update.judge import keep_aside, some_rows
from ditprune.pruning.update.share import LARGEST_PERCENT, largest_below, most_tries

DISTILL = Distill(num_steps=4, learning_rate=1e-3, batch_size=4)
METHODS: list[dict[str, Any]] = [
    {},
    {"allocation": "owl"},
    {"allocation": "proxy"},
    {"reconstruction": "obs"},
    {"reconstruction": "admm", "mask": "reconstruction", "packages": 2},
    {"reconstruction": "obs", "allocation": "proxy", "exclude": "*.ff.*"},
    {"refinement": DISTILL},
    {
        "reconstruction": "obs", "mask": "refinement", "allocation": "sensitivity",
        "refinement": Distill(num_steps=6, batch_size=4, held_back=0.2),
    },
]  # fmt: skip
ASKED = 0.002


@pytest.fixture(scope="module")
def tiny_dit(tiny_dit) -> Callable[..., nn.Module]:
    """Of one block: a share is found by many tries."""
    return partial(tiny_dit, num_layers=1)


@pytest.fixture(scope="module")
def tiny_stats(tiny_dit, batches) -> Any:
    return ditprune.calibrate(tiny_dit(), batches(tiny_dit()))


@pytest.fixture
def calls(tiny_dit, batches) -> list[Call]:
    """24 rows, of which three are kept aside."""
    return [Call.of(batch) for batch in batches(tiny_dit(), 12)]


def error(denoiser: nn.Module, dense: nn.Module, calls: list[Call]) -> float:
    return relative_error(zip(predictions(denoiser, calls), predictions(dense, calls), strict=True))


@pytest.mark.parametrize("words", METHODS, ids=str)
def test_the_share_is_the_largest_and_the_error_is_that_of_unseen_rows(
    words, tiny_dit, batches, calls, same_bits
) -> None:
    make = partial(tiny_dit, num_layers=words.get("packages", 1))
    denoiser, dense = make(), make()
    stats = ditprune.calibrate(dense, batches(dense))
    outcome = ditprune.prune_(denoiser, stats, batches=calls, max_error=ASKED, **words)
    seen, aside = keep_aside(dense, calls)
    bound, sparsity = outcome.error, outcome.recipe.sparsity
    assert outcome.recipe == build(sparsity=sparsity, **words)
    assert round(100 * sparsity) / 100 == sparsity
    assert bound.asked == ASKED
    assert bound.num_rows == 3
    assert bound.measured == pytest.approx(error(denoiser, dense, aside), rel=1e-6)
    refined = words.get("refinement") is not None
    if not refined:
        assert bound.expected == pytest.approx(error(denoiser, dense, seen), rel=1e-6)
        again = make()
        needs = {"batches": seen} if outcome.recipe.needs_calls else {}
        ditprune.prune_(again, stats, recipe=outcome.recipe, **needs)
        for name, tensor in again.state_dict().items():
            same_bits(denoiser.state_dict()[name], tensor)
    more = {k: v for k, v in words.items() if not (refined and k in ("refinement", "mask"))}
    if words.get("mask") == "refinement":
        more["mask"] = "reconstruction"
    more = build(sparsity=sparsity + 0.01, **more)
    next_one = make()
    needs = {"batches": seen} if more.needs_calls else {}
    ditprune.prune_(next_one, stats, recipe=more, **needs)
    assert bound.expected < ASKED <= error(next_one, dense, seen)


def test_nothing_sees_the_rows_kept_aside(tiny_dit, tiny_stats, calls, same_bits) -> None:
    """Other numbers in them change what is measured, and not one weight."""
    words: dict[str, Any] = {
        "reconstruction": "obs", "allocation": "sensitivity", "refinement": DISTILL,
        "max_error": ASKED,
    }  # fmt: skip
    _, aside = keep_aside(tiny_dit(), calls)
    samples = {id(call): call.sample().clone() for call in calls}
    rows = torch.cat([call.sample() for call in aside])
    first, second = tiny_dit(), tiny_dit()
    one_outcome = ditprune.prune_(first, tiny_stats, batches=calls, **words)
    num_changed = 0
    for call in calls:
        sample = call.sample()
        for row in range(num_rows(call)):
            if (sample[row] == rows).flatten(1).all(1).any():
                sample[row] = -2 * samples[id(call)][row]
                num_changed += 1
    assert num_changed == 3
    other_outcome = ditprune.prune_(second, tiny_stats, batches=calls, **words)
    for name, tensor in first.state_dict().items():
        same_bits(second.state_dict()[name], tensor)
    assert one_outcome.error.expected == other_outcome.error.expected
    assert one_outcome.error.measured != other_outcome.error.measured


def test_rows_in_turns_are_all_drawn(tiny_dit, batches) -> None:
    """With guidance every other row has no condition: as many of both are judged."""
    denoiser = tiny_dit()
    calls = [Call.of(batch) for batch in batches(denoiser, 256)]
    for call in calls:
        call.sample()[0], call.sample()[1] = 1.0, -1.0
    _, aside = keep_aside(denoiser, calls)
    for drawn in (some_rows(denoiser, calls), aside):
        rows = torch.cat([call.sample() for call in drawn])
        assert len(rows) == 64
        assert 20 <= int((rows > 0).flatten(1).all(1).sum()) <= 44


@pytest.mark.parametrize("num_calls", [1, 2, 7, 8, 300])
def test_rows_aside_are_few_and_spread(num_calls, tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    calls = [Call.of(batch) for batch in batches(denoiser, num_calls)]
    seen, aside = keep_aside(denoiser, calls)
    count = sum(map(num_rows, aside))
    assert count == min(64, max(1, 2 * num_calls // 8))
    assert count + sum(map(num_rows, seen)) == 2 * num_calls
    every_row = torch.cat([call.sample() for call in (*seen, *aside)]).flatten(1)
    assert len(every_row.unique(dim=0)) == 2 * num_calls
    places = [
        next(i for i, call in enumerate(calls) if (call.sample() == row).flatten(1).all(1).any())
        for part in aside
        for row in part.sample()
    ]
    ends = [0, *places, num_calls]
    assert max(b - a for a, b in pairwise(ends)) <= 2 * num_calls / count


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_are_refused(count, tiny_dit, tiny_stats, batches, same_bits) -> None:
    denoiser, dense = tiny_dit(), tiny_dit()
    rows = [{k: v[:1] for k, v in batch.items()} for batch in batches(denoiser, count)]
    with pytest.raises(
        RecipeError, match=f"at least 2 rows, {count} given" if count else "none were given"
    ):
        ditprune.prune_(denoiser, tiny_stats, batches=rows, max_error=ASKED)
    for name, tensor in dense.state_dict().items():
        same_bits(denoiser.state_dict()[name], tensor)


@pytest.mark.parametrize("words", [{}, {"reconstruction": "obs"}], ids=str)
def test_an_error_that_even_a_percent_exceeds_is_refused(
    words, tiny_dit, tiny_stats, calls, same_bits
) -> None:
    denoiser, dense = tiny_dit(), tiny_dit()
    with pytest.raises(RecipeError, match=r"1 % already gives an error of [\d.e-]+; ask for more"):
        ditprune.prune_(denoiser, tiny_stats, batches=calls, max_error=1e-12, **words)
    for name, tensor in dense.state_dict().items():
        same_bits(denoiser.state_dict()[name], tensor)


@pytest.mark.parametrize("allocation", ["uniform", "sensitivity"])
def test_the_last_percent_is_the_most(allocation, tiny_dit, tiny_stats, calls) -> None:
    """Channels of 32 weights lose 30 at most, which budgets of 98 % allow."""
    outcome = ditprune.prune_(
        tiny_dit(), tiny_stats, batches=calls, max_error=1e5, allocation=allocation
    )
    assert outcome.recipe.sparsity == LARGEST_PERCENT / 100


@pytest.mark.parametrize(
    ("spoil", "problem", "match"),
    [
        (math.nan, ModelError, "predicts NaN or Inf for calibration calls"),
        (0.0, ModelError, "predicts zeros for all calibration calls"),
    ],
)
def test_a_dense_denoiser_that_predicts_nothing_is_told(
    spoil, problem, match, tiny_dit, batches
) -> None:
    denoiser = tiny_dit()
    with torch.no_grad():
        denoiser.proj_out_2.weight.fill_(spoil)
        denoiser.proj_out_2.bias.fill_(spoil)
    before = copy.deepcopy(denoiser.state_dict())
    with pytest.raises(problem, match=match):
        ditprune.prune_(denoiser, saliency="magnitude", batches=batches(denoiser), max_error=ASKED)
    torch.testing.assert_close(denoiser.state_dict(), before, rtol=0, atol=0, equal_nan=True)


def test_calls_with_nan_are_told(tiny_dit, tiny_stats, calls) -> None:
    calls[3].sample().fill_(math.nan)
    with pytest.raises((ModelError, StatisticsError), match="NaN or Inf"):
        ditprune.prune_(
            tiny_dit(), tiny_stats, batches=calls, max_error=ASKED, reconstruction="obs"
        )


@pytest.mark.parametrize("allocation", ["sensitivity", "proxy"])
def test_budgets_are_measured_once_and_their_curve_saves_tries(
    allocation, tiny_dit, tiny_stats, calls, monkeypatch
) -> None:
    measured: list[int] = []
    whole = budgets.costs_of

    def counted(*args: Any) -> Any:
        measured.append(1)
        return whole(*args)

    monkeypatch.setattr(budgets, "costs_of", counted)
    told: list[str] = []
    ditprune.prune_(
        tiny_dit(), tiny_stats, batches=calls, max_error=ASKED, allocation=allocation,
        progress=lambda what, done, total: told.append(what),
    )  # fmt: skip
    assert len(measured) == 1
    tries = {what.partition(",")[0] for what in told if what.startswith("try ")}
    assert (
        f"try 1 of at most {share.most_tries(build(allocation=allocation, max_error=1))}" in tries
    )
    assert len(tries) <= 5


def test_the_denoiser_is_whole_after_a_failed_try(
    tiny_dit, tiny_stats, calls, monkeypatch, same_bits
) -> None:
    denoiser, dense = tiny_dit(), tiny_dit()
    times: list[int] = []
    whole = update.update_at

    def fails_later(*args: Any) -> Any:
        times.append(1)
        if len(times) == 30:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(update, "update_at", fails_later)
    with pytest.raises(KeyboardInterrupt):
        ditprune.prune_(denoiser, tiny_stats, batches=calls, max_error=ASKED)
    for name, tensor in dense.state_dict().items():
        same_bits(denoiser.state_dict()[name], tensor)


def test_it_is_said_before_and_after(tiny_dit, tiny_stats, calls) -> None:
    plan = ditprune.inspect(tiny_dit(), tiny_stats, max_error=ASKED)
    assert {target.num_prune for target in plan.targets.values()} == {None}
    (line,) = error_lines(plan)
    assert line == "share: found when pruning, the largest whose expected error stays below 0.002"
    outcome = ditprune.prune_(tiny_dit(), tiny_stats, batches=calls, max_error=ASKED)
    share_line, line = error_lines(outcome)
    assert f"{outcome.recipe.sparsity:.0%} of each group" in share_line
    assert f"{outcome.error.measured:.3g} measured on 3 rows kept aside" in line
    assert ("ABOVE" in line) == (outcome.error.measured >= ASKED)
    assert list(error_lines(ditprune.prune_(tiny_dit(), tiny_stats))) == []


def rising(steps: list[float]) -> list[float]:
    return [sum(steps[: i + 1]) for i in range(len(steps))]


@given(
    st.lists(st.floats(0, 1), min_size=95, max_size=95),
    st.floats(1e-3, 100),
    st.sampled_from(["none", "itself", "other", "flat", "infinite"]),
)
def test_the_search_ends_between_two_percentages(steps, bound, guide) -> None:
    errors = rising(steps)
    curve = {
        "none": None,
        "itself": lambda percent: 7 * errors[percent - 1],
        "other": lambda percent: 1.2**percent,
        "flat": lambda percent: 0.0,
        "infinite": lambda percent: math.inf if percent > 20 else percent,
    }[guide]
    tried: dict[int, float] = {}

    def error_at(percent: int) -> float:
        assert percent not in tried
        tried[percent] = errors[percent - 1]
        return tried[percent]

    try:
        percent, found_error = largest_below(error_at, bound, curve)
    except RecipeError:
        assert tried[1] == errors[0] >= bound
    else:
        assert errors[percent - 1] == found_error < bound
        assert percent == LARGEST_PERCENT or tried[percent + 1] >= bound
    words = {} if curve is None else {"allocation": "proxy"}
    assert len(tried) <= most_tries(build(max_error=1, **words))


def test_an_error_that_is_no_number_counts_as_too_large() -> None:
    percent, _ = largest_below(lambda percent: percent if percent < 20 else math.nan, 50)
    assert percent == 19


def test_on_a_trained_model_unseen_rows_agree() -> None:
    """Within a half; shares were measured on 56 rows and judged on 8."""
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(bundled.PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    calls = sample_calls(pipeline, Sampling(32, "uniform", 6, 1.5))
    stats = ditprune.calibrate(pipeline.transformer, calls)
    outcome = ditprune.prune_(pipeline.transformer, stats, batches=calls, max_error=0.02)
    assert 0.3 < outcome.recipe.sparsity < 0.8
    assert outcome.error.expected / 1.5 < outcome.error.measured < 1.5 * outcome.error.expected
    assert outcome.error.num_rows == sum(map(num_rows, calls)) // 8
