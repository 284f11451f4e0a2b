"""How do the statistics of two calibrations of one model become one?"""

from __future__ import annotations

from collections.abc import Mapping

from ditprune.checkpoints.statistics_file import Statistics
from ditprune.errors import StatisticsError
from ditprune.method.statistics.column_norm import ColumnNorm, merge_norms


def merge_statistics(first: Statistics, second: Statistics) -> Statistics:
    """The statistics of both calibrations of one model, as if they had been one."""
    if first.fingerprints != second.fingerprints:
        raise StatisticsError(
            "statistics: cannot merge calibrations of different weights; calibrate the same model"
        )
    merged: dict[tuple[int, int], ColumnNorm] = {}
    norms: dict[str, ColumnNorm] = {}
    for name in _union(first.column_norms, second.column_norms):
        a, b = first.column_norms.get(name), second.column_norms.get(name)
        if a is None or b is None:
            norms[name] = a or b  # type: ignore[assignment]
            continue
        key = (id(a), id(b))
        norms[name] = merged.setdefault(key, merge_norms(a, b))
    return Statistics(
        norms,
        first.fingerprints,
        first.num_calls + second.num_calls,
        tuple(n for n in first.never_called if n in second.never_called),
        first.protocol,
        {
            n: first.num_inputs.get(n, 0) + second.num_inputs.get(n, 0)
            for n in _union(first.num_inputs, second.num_inputs)
        },
        tuple(_union(dict.fromkeys(first.unused), dict.fromkeys(second.unused))),
        {
            n: tuple(
                a + b
                for a, b in zip(
                    first.padding.get(n, (0, 0)), second.padding.get(n, (0, 0)), strict=True
                )
            )  # type: ignore[misc]
            for n in _union(first.padding, second.padding)
        },
        first.blocks,
    )


def _union(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    return [*first, *(name for name in second if name not in first)]
