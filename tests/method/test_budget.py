"""Budgets against every possible choice, and exact totals under bounds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditprune.errors import RecipeError
from ditprune.method.allocation import Curve, allocate

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def cost_at(curve: Curve, count: int) -> float:
    """The curve between its points."""
    share = count / curve.num_weights
    for (a, low), (b, high) in itertools.pairwise(zip(curve.shares, curve.costs, strict=True)):
        if a <= share <= b:
            return low + (high - low) * (share - a) / (b - a)
    raise AssertionError(share)


def convex(num_weights: int, scale: float, power: float, step: int = 1) -> Curve:
    return Curve(num_weights, step, SHARES, [scale * s**power for s in SHARES])


def test_no_other_choice_costs_less() -> None:
    curves = {"a": convex(8, 1.0, 2), "b": convex(8, 5.0, 3), "c": convex(4, 0.3, 2)}
    for total in range(21):
        counts = allocate(curves, total)
        assert sum(counts.values()) == total
        own = sum(cost_at(curves[n], c) for n, c in counts.items())
        best = min(
            sum(cost_at(curves[n], c) for n, c in zip(curves, choice, strict=True))
            for choice in itertools.product(range(9), range(9), range(5))
            if sum(choice) == total
        )
        assert own == pytest.approx(best, abs=1e-12)


def test_alike_targets_lose_alike_and_a_dear_one_less() -> None:
    curves = {"a": convex(100, 1.0, 2), "b": convex(100, 1.0, 2), "dear": convex(100, 9.0, 2)}
    counts = allocate(curves, 150)
    assert counts["a"] + counts["b"] + counts["dear"] == 150
    assert counts["dear"] < 50 < min(counts["a"], counts["b"])


def test_a_bump_in_a_curve_is_passed_by_its_hull() -> None:
    """The second point lies above the line from the first to the third."""
    bumpy = Curve(100, 1, (0.0, 0.5, 1.0), (0.0, 0.9, 1.0))
    line = Curve(100, 1, (0.0, 1.0), (0.0, 1.05))
    assert allocate({"bumpy": bumpy, "line": line}, 100) == {"bumpy": 100, "line": 0}


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.floats(0, 9), st.floats(1, 4), st.integers(1, 4)),
        min_size=1, max_size=6,
    ),
    st.floats(0, 1),
)  # fmt: skip
def test_totals_and_steps_hold(draws, share) -> None:
    curves = {
        str(i): convex(n * step, scale, power, step)
        for i, (n, scale, power, step) in enumerate(draws)
    }
    curves["fine"] = convex(8, 1.0, 2)
    total = round(share * sum(curve.num_weights for curve in curves.values()))
    counts = allocate(curves, total)
    for name, count in counts.items():
        assert 0 <= count <= curves[name].num_weights
        assert count % curves[name].step == 0
    assert 0 <= total - sum(counts.values()) < 4


def test_bounds_hold_and_a_total_outside_them_is_refused() -> None:
    curves = {
        name: Curve(100, 1, (0.2, 0.5, 0.8), (0.1, 0.3, 1.0 + scale))
        for scale, name in enumerate("ab")
    }
    assert allocate(curves, 40) == {"a": 20, "b": 20}
    assert allocate(curves, 160) == {"a": 80, "b": 80}
    assert all(20 <= count <= 80 for count in allocate(curves, 90).values())
    for total in (39, 161):
        with pytest.raises(RecipeError, match=r"allow 20\.0% to 80\.0%"):
            allocate(curves, total)
