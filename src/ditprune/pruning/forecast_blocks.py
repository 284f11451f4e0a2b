"""What does updating weights block by block take? From shapes and counted operations alone.

A recipe that follows the denoiser's output runs its rows forwards, keeps what every block gives,
and comes back block by block for gradients, Grams and errors. Then, unless all Grams are kept, it
goes forwards once more to take them again and to update. Other recipes go forwards alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, sqrt

from ditprune.calibration.observe import gram_bytes, stages
from ditprune.method.recipe import Recipe
from ditprune.pruning.forecast_layers import (
    curve_operations,
    factor_operations,
    gram_operations,
    solve_operations,
)
from ditprune.pruning.rates import Operations, Rates
from ditprune.pruning.row_cost import RowCost
from ditprune.pruning.update.blockwise.room import work_bytes
from ditprune.pruning.update.grams import enough_rows
from ditprune.pruning.update.prepared import DEFAULT_GRAM_BYTES
from ditprune.targets.discover import Target

_FLOAT, _FLAG = 4, 1
_KEPT_PER_NUMBER = 2  # for a backward pass, of what enters and leaves linear layers
_TRAINING_COPIES = 5  # float32: weight, gradient, two means, the mask as numbers
_FORWARDS_OF_STEP = 3.0  # forwards, and backwards with gradients of weights


@dataclass(frozen=True)
class Setting:
    """What beside the recipe decides what it takes.

    Args:
        num_rows: of calibration calls.
        rows_together: of the largest call.
        num_parameters: of the whole denoiser.
        itemsize: bytes of a weight and of a hidden state.
    """

    num_rows: int
    rows_together: int
    num_parameters: int
    itemsize: int = _FLOAT
    max_gram_bytes: int = DEFAULT_GRAM_BYTES


@dataclass(frozen=True)
class BlockForecast:
    """Of updating block by block.

    Args:
        work: by stage.
        num_rows: that gradients and Grams are taken of.
        device_bytes: at most, while a block runs, is updated or is refined.
        states_bytes: of the hidden states of two blocks.
        trace_bytes: of the hidden states of all blocks and how much tokens count; 0 where nothing
            comes back.
        least_trace_bytes: the same where the disk is short; it takes one forward pass more.
    """

    work: Mapping[str, Operations]
    num_rows: int
    device_bytes: Mapping[str, int]
    states_bytes: int
    trace_bytes: int
    least_trace_bytes: int

    def seconds(self, rates: Rates) -> dict[str, float]:
        """By stage."""
        return {stage: work.seconds(rates) for stage, work in self.work.items()}


def forecast_blocks(
    targets: Mapping[str, Target], recipe: Recipe, row: RowCost, setting: Setting
) -> BlockForecast:
    """Of a recipe on a denoiser whose blocks are taken one by one."""
    rows, sees_output = setting.num_rows, recipe.objective == "output"
    reached = {name: row.num_tokens.get(name, 0.0) for name in targets}
    if sees_output:
        rows = min(rows, enough_rows(targets, reached))
    given = [block.num_given for block in row.blocks.values()] or [0.0]
    weights_bytes = rows * _FLOAT * sum(reached.values()) if sees_output else 0
    state_bytes = rows * setting.itemsize
    every = ceil(sqrt(len(given)))
    fewest = min(sum(given), (ceil(len(given) / every) + every) * max(given))
    return BlockForecast(
        _work(targets, recipe, row, setting, rows),
        rows,
        _device_bytes(targets, recipe, row, setting),
        round(2 * state_bytes * max(given)),
        round(state_bytes * sum(given) + weights_bytes) if sees_output else 0,
        round(state_bytes * fewest + weights_bytes) if sees_output else 0,
    )


def by_block(targets: Mapping[str, Target]) -> dict[str, dict[str, Target]]:
    """The targets of each block."""
    blocks: dict[str, dict[str, Target]] = {}
    for name, target in targets.items():
        blocks.setdefault(target.block, {})[name] = target
    return blocks


@dataclass(frozen=True)
class _Passes:
    """Operations of one row in a pass over all blocks; each is entered through what lies outside.

    Args:
        once: every block runs once.
        forwards: once for each stage of its Grams.
        backwards: the same, and back without gradients of weights.
    """

    once: float
    forwards: float
    backwards: float

    @classmethod
    def of(cls, targets: Mapping[str, Target], row: RowCost, setting: Setting) -> _Passes:
        once = forwards = backwards = 0.0
        for path, inside in by_block(targets).items():
            num_stages = len(stages(inside, 1, setting.max_gram_bytes))
            block = row.blocks[path].num_operations
            linear = sum(2.0 * row.num_tokens[name] * t.num_weights for name, t in inside.items())
            once += row.num_outside + block
            forwards += num_stages * (row.num_outside + block)
            backwards += num_stages * (row.num_outside + 3 * block - linear)
        return cls(once, forwards, backwards)


def _work(
    targets: Mapping[str, Target], recipe: Recipe, row: RowCost, setting: Setting, rows: int
) -> dict[str, Operations]:
    passes = _Passes.of(targets, row, setting)
    factors = sum(factor_operations(target, recipe) for target in targets.values())
    solves = sum(solve_operations(target, recipe) for target in targets.values())
    grams = rows * gram_operations(targets, row)
    num_masks = 2 if recipe.mask == "refinement" else 1
    layers = Operations(updates=num_masks * solves, factors=factors)
    work: dict[str, Operations] = {}
    if recipe.objective == "output":
        work["gradients"] = Operations(rows * (passes.once + passes.backwards), grams)
    if recipe.allocation == "proxy":
        curves = sum(curve_operations(target, recipe) for target in targets.values())
        work["budgets"] = Operations(updates=curves, factors=factors)
    measures_first = recipe.allocation == "proxy" or recipe.refinement is not None
    is_kept = _keeps_grams(targets, recipe, setting) or not measures_first
    if recipe.objective != "output" or not is_kept:
        work["Grams"] = Operations(rows * passes.forwards, grams)
    if recipe.reconstructs:
        work["layers"] = layers
    if recipe.refinement is not None:
        settings = recipe.refinement
        taken = settings.num_steps * min(settings.rows_of_block(_tokens(row)), setting.num_rows)
        blocks = sum(block.num_operations for block in row.blocks.values())
        followed = (2 if settings.inputs == "pruned" else 1) * setting.num_rows * passes.once
        work["refinement"] = Operations(_FORWARDS_OF_STEP * taken * blocks + followed)
    return work


def _tokens(row: RowCost) -> int:
    """Of the hidden states of a row, as the layer with most tells them."""
    return round(max(row.num_tokens.values(), default=1.0))


def _keeps_grams(targets: Mapping[str, Target], recipe: Recipe, setting: Setting) -> bool:
    """Whether the Grams of all targets stay from the way back, so that no pass takes them again."""
    is_enough = len(stages(targets, 1, setting.max_gram_bytes)) == 1
    return is_enough and recipe.objective == "output" and recipe.refinement is None


def _device_bytes(
    targets: Mapping[str, Target], recipe: Recipe, row: RowCost, setting: Setting
) -> dict[str, int]:
    """The most of every phase over the blocks."""
    outside = setting.num_parameters - sum(target.num_weights for target in targets.values())
    fixed = setting.itemsize * outside
    if _keeps_grams(targets, recipe, setting):
        fixed += sum(gram_bytes(target) for target in targets.values())
    most: dict[str, int] = {}
    for inside in by_block(targets).values():
        for phase, size in _of_block(inside, recipe, row, setting).items():
            most[phase] = max(most.get(phase, 0), fixed + size)
    return most


def _of_block(
    inside: Mapping[str, Target], recipe: Recipe, row: RowCost, setting: Setting
) -> dict[str, int]:
    """Of every phase, without what lies outside of the block."""
    num_masks = 2 if recipe.mask == "refinement" else 1
    weight_bytes = setting.itemsize + num_masks * (_FLOAT + _FLAG)  # as they are, and their results
    fixed = weight_bytes * sum(target.num_weights for target in inside.values())
    cut = stages(inside, 1, setting.max_gram_bytes)
    fixed += max(sum(gram_bytes(inside[name]) for name in names) for names in cut)
    phases = {
        "runs": fixed + setting.rows_together * _activation_bytes(inside, row, setting),
        "is updated": fixed + max(map(work_bytes, inside.values())),
    }
    if recipe.refinement is not None:
        rows = min(setting.num_rows, recipe.refinement.rows_of_block(_tokens(row)))
        trained = sum(target.num_weights for target in inside.values())
        activations = rows * _activation_bytes(inside, row, setting)
        phases["is refined"] = fixed + _TRAINING_COPIES * _FLOAT * trained + activations
    return {phase: round(size) for phase, size in phases.items()}


def _activation_bytes(targets: Mapping[str, Target], row: RowCost, setting: Setting) -> float:
    """Of one row, with what a backward pass needs."""
    numbers = sum(row.num_tokens.get(name, 0.0) * sum(t.shape) for name, t in targets.items())
    return _KEPT_PER_NUMBER * setting.itemsize * numbers
