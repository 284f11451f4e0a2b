"""How is it printed what became of a denoiser that was shrunk, and what each ratio would cost?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rich.table import Table

from ditprune.cli import console
from ditprune.errors import RecipeError
from ditprune.reporting import formats
from ditprune.reporting.told_shrunk import whole_lines
from ditprune.shrinking.modulation import NONE
from ditprune.shrinking.outcome import ShrinkOutcome
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.prices import NOTHING, Size
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.shapes import clustered
from ditprune.shrinking.units import HEADS, NEURONS

_RATIOS = tuple(tenths / 10 for tenths in range(1, 9))
_MOST_NOTES = 5
_BLOCK = re.compile(r"(.*?\.\d+)(?:\.|$)")


def show_shrunk(outcome: ShrinkOutcome, prefix: str) -> None:
    """What went from a denoiser: each block in a table, then the sums and what stays."""
    table = Table("block", HEADS, NEURONS, "rank", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    for block, cells in _rows(outcome).items():
        table.add_row(f"{prefix}{block}", *cells)
    console.show_table(table)
    console.show([""])
    console.show(_sums(outcome), prefix)
    stays = ((name, f"{{}}: {reason}") for name, reason in outcome.whole.items())
    console.show(whole_lines(stays), prefix)
    console.show(outcome.notes[:_MOST_NOTES], prefix)
    if len(outcome.notes) > _MOST_NOTES:
        more = len(outcome.notes) - _MOST_NOTES
        console.show([f"… and {more} more notes, all of them in ditprune.json"], prefix)


def _rows(outcome: ShrinkOutcome) -> dict[str, tuple[str, str, str]]:
    """By block, its heads and neurons before and after, and the ranks of its modulation."""
    names = [*outcome.parts, *outcome.ranks]
    blocks = {block: [n for n in names if _block_of(n) == block] for block in map(_block_of, names)}
    return {
        block: (_units(outcome, inside, HEADS), _units(outcome, inside, NEURONS),
                _ranks(outcome, inside))
        for block, inside in blocks.items()
    }  # fmt: skip


def _block_of(name: str) -> str:
    match = _BLOCK.match(name)
    return name if match is None else match[1]


def _units(outcome: ShrinkOutcome, names: Iterable[str], kind: str) -> str:
    parts = [outcome.parts[n] for n in names if n in outcome.parts]
    parts = [part for part in parts if part.kind == kind]
    if not parts:
        return formats.NONE
    before, after = sum(p.num_units for p in parts), sum(len(p.kept) for p in parts)
    return f"{before:,} → {after:,}" if after < before else f"{before:,}"


def _ranks(outcome: ShrinkOutcome, names: Iterable[str]) -> str:
    ranks = sorted({outcome.ranks[name].rank for name in names if name in outcome.ranks})
    return ", ".join(map(str, ranks)) or formats.NONE


def _sums(outcome: ShrinkOutcome) -> Iterator[str]:
    before, after, recipe = outcome.before, outcome.after, outcome.recipe
    words = "multiplications" if recipe.price == "macs" else "parameters"
    pairs = (before.num_macs, after.num_macs)
    if recipe.price != "macs":
        pairs = (before.num_parameters, after.num_parameters)
    of_all = formats.percent(1 - pairs[1] / pairs[0]) if pairs[0] else formats.NONE
    yield (
        f"removed {formats.percent(outcome.ratio)} of the {words} of {' and '.join(recipe.parts)} "
        f"in the blocks, {of_all} of those of the whole denoiser"
    )
    yield f"MACs of a call: {_change(before.num_macs, after.num_macs, 'MAC')}"
    yield f"parameters: {_change(before.num_parameters, after.num_parameters)}"
    yield f"bytes: {_change(before.num_bytes, after.num_bytes, 'B')}"
    yield f"expected error of the predicted noise: {formats.brief(outcome.error, 3)}"
    if outcome.error_of_free_choice < outcome.error:
        yield (
            f"  with free choice of shapes: {formats.brief(outcome.error_of_free_choice, 3)} "
            "(--max-shapes none)"
        )
    if outcome.ranks:
        ranks = outcome.ranks.values()
        weights = sum(r.num_weights_before for r in ranks), sum(r.num_weights for r in ranks)
        yield f"weights of {len(ranks)} modulation layers: {_change(*weights)}"
        if len({r.rank for r in ranks}) > 1 and recipe.max_shapes != NONE:
            yield (
                "  their ranks differ, so blocks have more shapes than --max-shapes says; a share "
                "(--modulation 0.75) gives them the same rank"
            )


def _change(before: int, after: int, unit: str = "") -> str:
    shown = f"{formats.count(before, unit).strip()} → {formats.count(after, unit).strip()}"
    return f"{shown} ({formats.change(after, before)})" if before else shown


def show_curve(plan: ShrinkPlan, recipe: ShrinkRecipe, prefix: str) -> None:
    """What a denoiser would lose at some ratios, and with the recipe."""
    table = Table("ratio", "expected error", "MACs", "bytes", box=None, pad_edge=False)
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    whole = plan.size(dict.fromkeys(plan.orders, 0))
    table.add_row(f"{prefix}0", "0", *_sizes(whole))
    for ratio in _RATIOS:
        tried = replace(recipe, ratio=ratio, max_error=None, fit=None)
        table.add_row(f"{prefix}{ratio:g}", *_at(plan, tried))
    console.show_table(table)
    counts = clustered(plan, plan.counts(recipe), recipe)
    size = plan.size(counts)
    console.show(
        [
            "",
            f"as asked for: ratio {plan.ratio(counts):.3f}, expected error "
            f"{formats.brief(plan.error(counts), 3)}, "
            f"{' and '.join(_sizes(size))}",
        ]
    )  # fmt: skip
    if recipe.modulation != NONE and plan.saved == NOTHING:
        console.show(["the rank of the modulation, which is lowered besides, is not counted here"])


def _at(plan: ShrinkPlan, recipe: ShrinkRecipe) -> Sequence[str]:
    try:
        counts = clustered(plan, plan.counts(recipe), recipe)
    except RecipeError:
        return ("cannot be reached", formats.NONE, formats.NONE)
    return (formats.brief(plan.error(counts), 3), *_sizes(plan.size(counts)))


def _sizes(size: Size) -> tuple[str, str]:
    return formats.count(size.num_macs, "MAC"), formats.size(size.num_bytes)
