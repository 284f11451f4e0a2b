"""What of a model is NaN or Inf: it enters no number, and the reader is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ditprune.evaluation.metrics.error_rows import Row
from ditprune.evaluation.metrics.interval import Estimate

_ADVICE = (
    "evaluate with another --dtype (float16 overflows where bfloat16 and float32 do not), or look "
    "for NaN and Inf in the weights"
)


def finite(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The estimates whose value is a number."""
    return {name: one for name, one in estimates.items() if math.isfinite(one.value)}


def told(rows: Sequence[Row], num_spoiled: int, num_images: int) -> list[str]:
    """The warnings for one model.

    Args:
        rows: of its held-out calls; empty for the dense model.
        num_spoiled: images with a pixel that was not finite.
    """
    found = []
    dense = [row for row in rows if not math.isfinite(row.dense)]
    own = [row for row in rows if math.isfinite(row.dense) and not math.isfinite(row.difference)]
    for whose, lost in (("the dense model's", dense), ("its", own)):
        if lost:
            found.append(
                f"{whose} predictions are not finite (NaN or Inf) in {len(lost):,} of "
                f"{len(rows):,} rows of held-out calls, so the relative error has no number "
                f"there: {_ADVICE}"
            )
    if num_spoiled:
        found.append(
            f"{num_spoiled:,} of {num_images:,} images are not finite (NaN or Inf), and shown "
            f"with black for NaN: {_ADVICE}"
        )
    return found
