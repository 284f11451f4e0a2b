"""A number with its 95 % interval: by bootstrap, and of a share by Wilson's formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NUM_RESAMPLES = 200
_TAIL, _NUM_ERRORS = 0.025, 1.959964
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
    is_mean: bool = False,
) -> Estimate:
    """The 2.5 and 97.5 percentiles of a statistic over resamples, moved so that they lie about it.

    Of fewer than 100 resamples it is 1.96 standard deviations on each side. Repeated items make
    distances of distributions larger than they are; so the spread of the resamples is kept and
    their mean is put where the value is, but for a mean, which resamples do not overstate.

    Args:
        statistic: of the counts [n] of one resample.
        lowest: below which the interval cannot reach.
        is_mean: whether the statistic is a mean over items, or a ratio of means.
    """
    if num_items < 2:
        return Estimate(value)
    values = torch.tensor([statistic(w) for w in resamples(num_items, num_resamples, seed)])
    values = values.double()
    if num_resamples < _FEW:
        reach = _NUM_ERRORS * values.std().item()
        low, high = value - reach, value + reach
    else:
        shift = 0.0 if is_mean else value - values.mean().item()
        low, high = (torch.quantile(values, q).item() + shift for q in (_TAIL, 1 - _TAIL))
    return Estimate(value, low if lowest is None else max(low, lowest), high)


def mean(values: Float[Tensor, " n"], seed: int = 0) -> Estimate:
    """The mean of one number for each item, and its interval."""
    count = len(values)
    return bootstrap(
        values.mean().item(), lambda weights: (weights @ values).item() / count, count, seed,
        is_mean=True,
    )  # fmt: skip


def share(values: Float[Tensor, " n"]) -> Estimate:
    """The share of ones among zeros and ones, and its interval.

    Wilson's (1927), since resamples of items that are all alike have no spread.
    """
    count = len(values)
    value = values.mean().item()
    if count < 2:
        return Estimate(value)
    per_item = _NUM_ERRORS**2 / count
    reach = _NUM_ERRORS * math.sqrt(value * (1 - value) / count + per_item / (4 * count))
    low, high = ((value + per_item / 2 + side * reach) / (1 + per_item) for side in (-1, 1))
    return Estimate(value, max(low, 0.0), min(high, 1.0))


def differ(one: Sequence[float], two: Sequence[float], seed: int = 0) -> bool:
    """Whether two means over the same items differ, item by item, so that what makes items hard
    for both does not count.

    Of shares, by the exact test of the items that differ (McNemar, 1947): three that all went one
    way are no evidence. Of other means, where 0 lies outside the interval of the mean difference.
    """
    between = torch.tensor(one, dtype=torch.float64) - torch.tensor(two, dtype=torch.float64)
    won, lost = int((between == 1).sum()), int((between == -1).sum())
    if won + lost == int((between != 0).sum()):
        return _chance(max(won, lost), won + lost) < 2 * _TAIL
    found = mean(between, seed)
    return found.low is not None and found.high is not None and not found.low <= 0 <= found.high


def _chance(num_heads: int, num_tosses: int) -> float:
    """That a fair coin shows one side, or the other, at least so often."""
    ways = sum(math.comb(num_tosses, heads) for heads in range(num_heads, num_tosses + 1))
    return min(1.0, 2 * ways / 2**num_tosses)


def overlap(one: Estimate, two: Estimate) -> bool:
    """Whether two intervals share a point; so do those of which one is not known."""
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return True
    return max(one.low, two.low) <= min(one.high, two.high)
