"""What went when a denoiser was shrunk, and what stayed whole? Each fact is worded here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ditprune.checkpoints.shrunk.form import new_name
from ditprune.reporting import formats


def shrunk_lines(record: Mapping[str, Any]) -> list[str]:
    """The facts that the record of a shrunk folder tells, a line each.

    Raises one of `MALFORMED` where it cannot be read.
    """
    return [
        totals_line(record["totals"]),
        *_block_lines(record),
        *_unit_lines(record),
        *_rank_lines(record),
        *whole_lines(
            (str(stays["name"]), f"{stays['kind']} of {{}}: {stays['reason']}")
            for stays in record["whole"]
        ),
    ]


def totals_line(totals: Mapping[str, Any]) -> str:
    """How much smaller it is: `30 % of the parameters went (…), …`."""
    words = {"num_parameters": "parameters", "num_macs": "multiply-accumulates of a call"}
    before, after = totals["before"], totals["after"]
    parts = [
        f"{formats.percent(1 - after[key] / before[key])} of the {word} went "
        f"({formats.count(before[key])} to {formats.count(after[key])})"
        for key, word in words.items()
        if before[key] and after[key]
    ]
    return "; ".join(parts)


def _block_lines(record: Mapping[str, Any]) -> Iterator[str]:
    for path, stay in record["blocks"].items():
        inside = (
            name[len(path) + 1 :].partition(".")[0]
            for name in record["base"]["shapes"]
            if name.startswith(f"{path}.")
        )
        gone = sorted({int(index) for index in inside} - set(stay))
        if gone:
            yield f"blocks gone: {', '.join(map(str, gone))} of {path}"


def _unit_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """How many heads and neurons went from the blocks that stay."""
    counts: dict[str, list[int]] = {}
    for name, group in record["groups"].items():
        if new_name(name, record["blocks"]) is not None:
            count = counts.setdefault(group["kind"], [0, 0])
            count[0] += group["num_units"] - len(group["kept"])
            count[1] += group["num_units"]
    for kind, (num_gone, num_units) in counts.items():
        yield f"{kind}: {num_gone:,} of {num_units:,} went"


def _rank_lines(record: Mapping[str, Any]) -> Iterator[str]:
    ranks = [lowered["rank"] for lowered in record["ranks"].values()]
    if ranks:
        low, high = min(ranks), max(ranks)
        rank = f"{low}" if low == high else f"{low} to {high}"
        layers = "1 layer" if len(ranks) == 1 else f"{len(ranks)} layers"
        yield f"two Linears in the place of one: {layers}, of rank {rank}"


def whole_lines(stays: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What stays whole, a line for each reason.

    Args:
        stays: names with their reasons; `{}` in a reason stands for names.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in stays:
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"stays whole: {reason.replace('{}', names[0] + more)}"
