"""What is done to a pipeline or a denoiser that is loaded?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditprune.api.given import globs_given, read_batches, read_denoisers, read_statistics
from ditprune.calibration.calibrate import calibrate_denoiser
from ditprune.calls import NUM_BINS, Call
from ditprune.checkpoints.mask_file import MaskFile
from ditprune.checkpoints.skeleton import module_fingerprints
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.denoiser.placement import parse_size
from ditprune.denoiser.replay import fitting
from ditprune.denoiser.rows import to_placement
from ditprune.errors import ModelError
from ditprune.method.recipe import Recipe
from ditprune.method.words import build_each
from ditprune.progress import Progress
from ditprune.pruning.job import Outcome
from ditprune.pruning.loop import check_denoiser_to_prune, prune_denoiser_
from ditprune.pruning.masks_in_memory import apply_to_modules_
from ditprune.pruning.plan import Plan, make_plan, read_module
from ditprune.pruning.selection import select_in_module, statistics_of
from ditprune.pruning.update.update import check_needs_calls, check_needs_grams
from ditprune.reporting.bars import ProgressArgument, telling
from ditprune.targets.blocks import Globs, check_named, globs_of
from ditprune.targets.discover import discover
from ditprune.writing.paths import path_of

Recipes = Recipe | Mapping[str, Recipe] | None


def calibrate(
    model: Any, batches: Any, protocol: Mapping[str, object] | None = None,
    num_bins: int | None = None, *, blocks: Globs = (), progress: ProgressArgument = None,
) -> Statistics:  # fmt: skip
    """Observe the inputs of every target while each denoiser runs over its calls.

        calls = ditprune.sample(pipe, num_samples=4)
        stats = ditprune.calibrate(pipe, calls)
        print(stats.denoisers["transformer"].num_calls)

    Args:
        model: a diffusers pipeline, or a denoiser: any module with transformer blocks. It is not
            changed, hooks and modes included.
        batches: what `sample` or `load_calls` returns, or the folder of calls; or `ditprune.Call`s,
            dicts of keyword arguments for `forward`, or pairs (args, kwargs).
        protocol: how the batches were made; it is stored with the statistics.
        num_bins: the number of parts of the way from noise to image with norms of their own; that
            of the calls by default, or 10.
        blocks: globs over module paths that say where the transformer blocks are, as in
            `"double_blocks.*"`, or a mapping from denoiser to globs; by default they are found.
        progress: is told how far the work is; see `ditprune.api`.

    Returns:
        Statistics with the ℓ2 norm of every input channel over all tokens, [C_in] for each layer.

    Raises:
        RecipeError: `num_bins` is below 1.
        ModelError: a denoiser has no transformer blocks, or a batch is of another kind.
        StatisticsError: there are no batches, or an input holds NaN or Inf.
    """
    denoisers = read_denoisers(model)
    batches_of = read_batches(batches, denoisers, isinstance(model, nn.Module))
    blocks = globs_given(blocks)
    check_named(blocks, denoisers)
    parts = {}
    with telling(progress) as tell:
        for name, denoiser in denoisers.items():
            given = batches_of[name]
            bins = num_bins if num_bins is not None else getattr(given, "num_bins", None)
            with fitting("batches"):
                parts[name] = calibrate_denoiser(
                denoiser, _counted(calls_on_device(denoiser, given or ()), given, name, tell),
                protocol or getattr(given, "protocol", None), NUM_BINS if bins is None else bins,
                globs_of(blocks, name),
            )  # fmt: skip
    return Statistics.joined(parts)


def inspect_loaded(
    model: Any, stats: Statistics | str | Path | None = None, *, recipe: Recipes = None,
    **words: Any,
) -> Plan:  # fmt: skip
    """What `prune_` would do; see `ditprune.inspect`."""
    denoisers, all_stats = read_denoisers(model), read_statistics(stats)
    recipes = build_each(denoisers, recipe, **words)
    plans = {}
    for name, denoiser in denoisers.items():
        part = _statistics(all_stats, name, denoisers, recipes[name])
        selection = select_in_module(denoiser, recipes[name], part, is_plan=True)
        plans[name] = make_plan(selection, read_module(denoiser), part, recipes[name])
    joined: Plan = Plan.joined(plans)
    return joined


def prune_(
    model: Any,
    stats: Statistics | str | Path | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    batches: Any = None,
    max_gram_bytes: int | str | None = None,
    progress: ProgressArgument = None,
    recipe: Recipes = None,
    **words: Any,
) -> Outcome:
    """Prune a pipeline's denoisers, or one denoiser, in place. The default is the paper at 50 %.

        stats = ditprune.calibrate(pipe, ditprune.sample(pipe, num_samples=4))
        outcome = ditprune.prune_(pipe, stats, sparsity=0.5)
        print(f"{outcome.sparsity:.1%} of the targets, {outcome.model_sparsity:.1%} of all weights")

    Args:
        model: a diffusers pipeline, or a denoiser: any module with transformer blocks, on any
            device.
        stats: from `calibrate`, or their file; None where the saliency needs none (magnitude).
        sparsity: share of each comparison group to remove; 0.5 by default.
        batches: as for `calibrate`, where a recipe updates weights or measures errors.
        max_gram_bytes: memory for Grams in bytes or as `"8GB"`, 4 GB by default; fewer bytes mean
            more passes over the batches.
        progress: is told how far the work is; see `ditprune.api`.
        recipe: what to do, or what to do to each denoiser; excludes `sparsity` and `words`.
        words: the words of a recipe, as in `saliency="wanda"`; see `Recipe`. Each may be a mapping
            from denoiser to value.

    Returns:
        What was done to each target.

    Raises:
        RecipeError, ModelError, TargetError, StatisticsError: before anything is changed.
    """
    denoisers, all_stats = read_denoisers(model), read_statistics(stats)
    recipes = build_each(denoisers, recipe, sparsity=sparsity, **words)
    if batches is not None:
        check_needs_calls(recipes.values(), "batches")
    max_gram_bytes = parse_size(max_gram_bytes, "max_gram_bytes")
    if max_gram_bytes is not None:
        check_needs_grams(recipes.values(), "max_gram_bytes")
    batches_of = read_batches(batches, denoisers, isinstance(model, nn.Module))
    checked = {
        name: check_denoiser_to_prune(
            denoiser, recipes[name], _statistics(all_stats, name, denoisers, recipes[name]),
            calls_on_device(denoiser, batches_of[name] or ()), max_gram_bytes,
        )
        for name, denoiser in denoisers.items()
    }  # fmt: skip
    with telling(progress) as tell:
        outcomes = {
            name: prune_denoiser_(ready, told_by_name(tell, name, denoisers))
            for name, ready in checked.items()
        }
    joined: Outcome = Outcome.joined(outcomes)
    return joined


def apply_mask_(model: Any, file: str | Path) -> Outcome:
    """Zero the weights that a mask removes, in memory; for example after `pipe.fuse_lora()`.

        ditprune.extract_mask("out", "mask.safetensors")
        outcome = ditprune.apply_mask_(pipe, "mask.safetensors")
        print(outcome.num_pruned)

    Args:
        model: a diffusers pipeline or a denoiser of the same class and size as the pruned model.
        file: from `extract_mask`. The masks of a pipeline serve one of its denoisers alone if its
            weights are those that were pruned.

    Returns:
        What the mask's manifest records, with the zeros that there are now.

    Raises ModelError, before anything is changed.
    """
    outcomes = apply_to_modules_(read_denoisers(model), MaskFile(path_of(file, ModelError)))
    joined: Outcome = Outcome.joined(outcomes)
    return joined


def _statistics(
    stats: Mapping[str, Statistics] | None, name: str, denoisers: Mapping[str, nn.Module],
    recipe: Recipe,
) -> Statistics | None:  # fmt: skip
    def fingerprints(blocks: tuple[str, ...]) -> dict[str, str]:
        targets = discover(denoisers[name], auxiliary=True, blocks=blocks)
        return module_fingerprints(denoisers[name], targets.values())

    return statistics_of(stats, name, denoisers, recipe, fingerprints)


def calls_on_device(denoiser: nn.Module, batches: Iterable[Any]) -> Iterator[Call]:
    """The calls, on the denoiser's device and in the dtype of most of its weights.

    A denoiser in half precision may hold some parameters in float32, and these may come first.
    """
    parameter = next(denoiser.parameters(), None)
    sizes = Counter[torch.dtype]()
    for weight in denoiser.parameters():
        sizes[weight.dtype] += weight.numel() if weight.is_floating_point() else 0
    for batch in batches:
        call = Call.of(batch)
        if parameter is None or parameter.is_meta:
            yield call
        else:
            yield to_placement(call, parameter.device, sizes.most_common(1)[0][0])


def _counted(calls: Iterable[Call], given: Any, name: str, progress: Progress) -> Iterator[Call]:
    total = len(given) if hasattr(given, "__len__") else None
    for number, call in enumerate(calls, start=1):
        yield call
        if total:
            progress(f"observing {name}", number, total)


def told_by_name(progress: Progress, name: str, among: Mapping[str, Any]) -> Progress:
    """Tells of one of several denoisers."""
    return progress if len(among) == 1 else partial(_tell_of, progress, name)


def _tell_of(progress: Progress, name: str, what: str, done: int, total: int) -> None:
    progress(f"{name}: {what}", done, total)
