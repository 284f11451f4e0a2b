"""What was not pruned, dropped or not reached? Each fact is worded here, and nowhere else.

The console, `Outcome.told`, `verify`, the card and the page all read these lines. They follow from
the manifest, or from what the manifest of an outcome would hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ditprune.checkpoints.shrunk.record import before_pruning, is_record
from ditprune.errors import DitpruneError
from ditprune.reporting import formats
from ditprune.reporting.told_shrunk import shrunk_lines, totals_line
from ditprune.writing.files import MANIFEST, read_manifest
from ditprune.writing.json_file import MALFORMED

# Rounding in groups of 32 weights moves a share by less.
_SHARE_TOLERANCE = 0.02


def facts_of(claims: Mapping[str, Any]) -> list[str]:
    """The facts that a manifest tells, a line each. Raises one of `MALFORMED`."""
    if is_record(claims):
        return shrunk_lines(claims)
    totals, record = claims["totals"], before_pruning(claims)
    return [
        *([f"shrunk before it was pruned: {totals_line(record['totals'])}"] if record else []),
        *dense_lines(claims["skipped"], claims["left_out"], totals["num_parameters"]),
        *_count_lines(claims["targets"]),
        *_share_lines(claims["recipe"], totals["sparsity"]),
        *_error_lines(claims.get("max_error")),
        *refined_lines(claims.get("refined")),
    ]


def facts_of_denoisers(denoisers: Mapping[str, Path]) -> list[str]:
    """The facts of several folders, without those whose manifest is absent or cannot be read."""
    lines = []
    for name, folder in denoisers.items():
        prefix = f"{name}: " if len(denoisers) > 1 else ""
        try:
            facts = facts_of(read_manifest(folder)) if (folder / MANIFEST).is_file() else []
        except (DitpruneError, *MALFORMED):
            continue
        lines += [f"{prefix}{fact}" for fact in facts]
    return lines


def dense_lines(
    skipped: Mapping[str, str], left_out: Mapping[str, Mapping[str, Any]], num_parameters: int
) -> Iterator[str]:
    """What stays dense in the blocks: skipped targets, then the rest by reason.

    Args:
        left_out: `num_weights` and `reason` by name.
    """
    for name, reason in skipped.items():
        yield f"stays dense: {name} ({reason})"
    by_reason: dict[str, list[str]] = {}
    for name, layer in left_out.items():
        by_reason.setdefault(layer["reason"], []).append(name)
    for reason, names in by_reason.items():
        num_weights = sum(left_out[name]["num_weights"] for name in names)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"stays dense: {names[0]}{more}, {num_weights:,} weights "
            f"({num_weights / num_parameters:.1%} of the denoiser): {reason}"
        )


def _count_lines(targets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """That layers lost fewer weights than each was to lose."""
    short = {n: t["num_asked"] - t["num_pruned"] for n, t in targets.items()}
    short = {name: number for name, number in short.items() if number > 0}
    if short:
        more = f" and {len(short) - 1} more" if len(short) > 1 else ""
        yield (
            f"share not reached: {next(iter(short))}{more} lost {sum(short.values()):,} weights "
            "fewer than asked for"
        )


def _share_lines(recipe: Mapping[str, Any], reached: float) -> Iterator[str]:
    """That a smaller share was removed than the recipe says."""
    asked = recipe.get("sparsity")
    if recipe.get("pattern"):
        keep, of = map(int, recipe["pattern"].split(":"))
        asked = 1 - keep / of
    if asked is not None and asked - reached > _SHARE_TOLERANCE:
        yield (
            f"share not reached: {formats.percent(reached)} of the target weights are removed, "
            f"{formats.percent(asked)} were asked for"
        )


def _error_lines(error: Mapping[str, Any] | None) -> Iterator[str]:
    """That the measured error is not below what was asked for."""
    if error is not None and not error["measured"] < error["asked"]:
        yield f"error not reached: {measured_error(error)}"


def measured_error(error: Mapping[str, Any]) -> str:
    """The error that was measured under a `max_error`, and whether it is below that."""
    measured = f"{error['measured']:.3g} measured on {error['num_rows']} rows kept aside"
    is_below = error["measured"] < error["asked"]
    return measured if is_below else f"{measured}, ABOVE the {error['asked']:.3g} asked for"


def refined_lines(refined: Mapping[str, Any] | None) -> Iterator[str]:
    """That a refinement's weights were not taken, or which layers it left as they were."""
    if refined is None:
        return
    if not refined["is_taken"]:
        after = refined["error_after"]
        shown = "NaN or Inf" if after is None else f"{after:.3g}"
        yield (
            "refinement dropped: every layer keeps what its reconstruction gave, since the "
            f"relative error on rows kept aside was {refined['error_before']:.3g} before and "
            f"{shown} after"
        )
    elif refined["unreached"]:
        names = refined["unreached"]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"not refined: {names[0]}{more}, to which no gradient leads; what the reconstruction "
            "gave stays"
        )
    if refined["is_taken"] and refined.get("left_blocks"):
        paths = refined["left_blocks"]
        more = f" and {len(paths) - 1} more blocks" if len(paths) > 1 else ""
        yield (
            f"not refined: {paths[0]}{more}, where training did not lower the error on rows kept "
            "aside; what the reconstruction gave stays"
        )
