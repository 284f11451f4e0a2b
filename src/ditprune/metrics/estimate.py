"""A number with its 95 % bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NUM_RESAMPLES = 200
_TAIL, _NUM_ERRORS = 0.025, 1.96
_FEW = 100  # resamples, whose tails are a matter of luck


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval; None where there are too few items for one."""

    value: float
    low: float | None = None
    high: float | None = None


def resamples(num_items: int, num_resamples: int, seed: int) -> Iterator[Float[Tensor, " n"]]:
    """How often each item is drawn in each resample with replacement: counts that add up to n."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_resamples):
        drawn = torch.randint(num_items, (num_items,), generator=generator)
        yield torch.bincount(drawn, minlength=num_items).double()


def bootstrap(
    value: float,
    statistic: Callable[[Float[Tensor, " n"]], float],
    num_items: int,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    lowest: float | None = None,
) -> Estimate:
    """The 2.5 and 97.5 percentiles of a statistic over resamples, moved so that they lie about it.

    Of fewer than 100 resamples it is 1.96 standard deviations on each side. Repeated items make
    distances of distributions larger than they are; so the spread of the resamples is kept and
    their mean is put where the value is.

    Args:
        statistic: of the counts [n] of one resample.
        lowest: below which the interval cannot reach.
    """
    if num_items < 2:
        return Estimate(value)
    values = torch.tensor([statistic(w) for w in resamples(num_items, num_resamples, seed)])
    values = values.double()
    if num_resamples < _FEW:
        reach = _NUM_ERRORS * values.std().item()
        low, high = value - reach, value + reach
    else:
        shift = value - values.mean().item()
        low, high = (torch.quantile(values, q).item() + shift for q in (_TAIL, 1 - _TAIL))
    return Estimate(value, low if lowest is None else max(low, lowest), high)


def differ(one: Sequence[float], two: Sequence[float], seed: int = 0) -> bool:
    """Whether two means over the same items differ: 0 lies outside the interval of the mean
    difference. Item by item, so what makes items hard for both does not count.
    """
    between = torch.tensor(one, dtype=torch.float64) - torch.tensor(two, dtype=torch.float64)
    count = len(between)
    found = bootstrap(
        between.mean().item(), lambda weights: (weights @ between).item() / count, count, seed
    )
    return found.low is not None and found.high is not None and not found.low <= 0 <= found.high


def overlap(one: Estimate, two: Estimate) -> bool:
    """Whether two intervals share a point; so do those of which one is not known."""
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return True
    return max(one.low, two.low) <= min(one.high, two.high)
