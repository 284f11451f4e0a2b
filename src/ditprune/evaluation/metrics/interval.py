"""How sure is a number? Its 95 % interval: by bootstrap, and for a share by Wilson's formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_NUM_RESAMPLES = 200
_TAIL, _NUM_ERRORS = 0.025, 1.959964
_FEW = 100  # resamples; with fewer, percentiles depend on luck


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; None if there are too few items for one."""

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
    num_resamples: int = _NUM_RESAMPLES,
    lowest: float | None = None,
    is_mean: bool = False,
) -> Interval:
    """The 2.5 and 97.5 percentiles of a statistic over resamples, centred on the value.

    Distances of distributions are larger for resamples than for the sample, since items repeat. So
    the mean of the resamples is moved to the value, except for a mean, which has no such bias. With
    fewer than 100 resamples the interval is 1.96 standard deviations on each side.

    Args:
        statistic: a function of the counts [n] of one resample.
        lowest: the interval does not go below it.
        is_mean: whether the statistic is a mean over items, or a ratio of means.
    """
    if num_items < 2:
        return Interval(value)
    values = torch.tensor([statistic(w) for w in resamples(num_items, num_resamples, seed)])
    values = values.double()
    if num_resamples < _FEW:
        reach = _NUM_ERRORS * values.std().item()
        low, high = value - reach, value + reach
    else:
        shift = 0.0 if is_mean else value - values.mean().item()
        low, high = (torch.quantile(values, q).item() + shift for q in (_TAIL, 1 - _TAIL))
    return Interval(value, low if lowest is None else max(low, lowest), high)


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of one number for each item."""
    items, count = torch.tensor(values, dtype=torch.float64), len(values)
    return bootstrap(
        items.mean().item(), lambda weights: (weights @ items).item() / count, count, seed,
        is_mean=True,
    )  # fmt: skip


def share_interval(values: Sequence[float]) -> Interval:
    """The share of ones among zeros and ones.

    By Wilson's formula (1927), since resamples of items that are all the same have no spread.
    """
    count = len(values)
    value = torch.tensor(values, dtype=torch.float64).mean().item()
    if count < 2:
        return Interval(value)
    per_item = _NUM_ERRORS**2 / count
    reach = _NUM_ERRORS * math.sqrt(value * (1 - value) / count + per_item / (4 * count))
    low, high = ((value + per_item / 2 + side * reach) / (1 + per_item) for side in (-1, 1))
    return Interval(value, max(low, 0.0), min(high, 1.0))


def differ(a: Sequence[float], b: Sequence[float], seed: int = 0) -> bool:
    """Whether two means over the same items differ, compared item by item.

    Items that are hard for both do not blur the comparison. Shares are compared by McNemar's exact
    test (1947): three items that all went one way are no evidence. Other means differ if 0 lies
    outside the interval of the mean difference.
    """
    difference = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    num_won, num_lost = int((difference == 1).sum()), int((difference == -1).sum())
    if num_won + num_lost == int((difference != 0).sum()):
        return _sign_test(max(num_won, num_lost), num_won + num_lost) < 2 * _TAIL
    gap = mean_interval(difference.tolist(), seed)
    return gap.low is not None and gap.high is not None and not gap.low <= 0 <= gap.high


def _sign_test(num_heads: int, num_tosses: int) -> float:
    """The probability that a fair coin shows one of its sides at least so often."""
    ways = sum(math.comb(num_tosses, heads) for heads in range(num_heads, num_tosses + 1))
    return min(1.0, 2 * ways / 2**num_tosses)


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two intervals share a point; True if one of them is not known."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return True
    return max(a.low, b.low) <= min(a.high, b.high)
