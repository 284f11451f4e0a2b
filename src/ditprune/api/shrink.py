"""How are heads, neurons and the rank of modulation removed, in memory or from a folder?"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditprune.api.calls import Calls, load_calls
from ditprune.api.given import (
    component_alone,
    located,
    read_batches,
    read_denoisers,
    yes_or_no,
)
from ditprune.api.memory import calls_on_device, told_by_name
from ditprune.calibration.collect import sample_folder
from ditprune.calibration.sample import Sampling
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import CalibrationSet
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import fitting, run_call
from ditprune.errors import RecipeError
from ditprune.method.words import each_of
from ditprune.progress import Progress
from ditprune.pruning.update.update import check_has_calls
from ditprune.reporting.bars import ProgressArgument, telling
from ditprune.shrinking.in_folder import plan_folder, shrink_folder
from ditprune.shrinking.in_memory import make_smaller_, smaller_of
from ditprune.shrinking.like import Like, likes_for
from ditprune.shrinking.outcome import ShrinkOutcome
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.writing.paths import path_of
from ditprune.writing.staging import check_before, check_early

_log = logging.getLogger("ditprune")

ShrinkRecipes = ShrinkRecipe | Mapping[str, ShrinkRecipe] | None


def shrink_(
    model: Any,
    batches: Any,
    ratio: float | Mapping[str, float] | None = None,
    *,
    recipe: ShrinkRecipes = None,
    progress: ProgressArgument = None,
    **words: Any,
) -> ShrinkOutcome:
    """Make a pipeline's denoisers, or one denoiser, smaller in place: whole heads and neurons go.

        outcome = ditprune.shrink_(pipe, calls, ratio=0.3, modulation=0.75)
        print(outcome.after.num_macs / outcome.before.num_macs, outcome.error)
        stay = outcome.parts["transformer_blocks.3.attn1"].kept

    What stays is a dense model of ordinary layers. It can be saved, pruned, quantised and compiled.

    Args:
        model: a diffusers pipeline, or a denoiser: any module with transformer blocks.
        batches: what `sample` or `load_calls` returns, or the folder of calls; or `ditprune.Call`s,
            dicts of keyword arguments for `forward`, or pairs (args, kwargs).
        ratio: share of the multiplications of attentions and MLPs that goes; 0.3 by default.
        recipe: what to do, or what to do to each denoiser; excludes `ratio` and `words`.
        progress: is told how far the work is; see `ditprune.api`.
        words: the words of a recipe, as in `max_error=0.005`; see `ShrinkRecipe`. Each may be a
            mapping from denoiser to value.

    Returns:
        Which units stay in each attention and MLP, and the sizes before and after.

    Raises:
        RecipeError, ModelError, TargetError, StatisticsError: before any denoiser is changed.
    """
    denoisers = read_denoisers(model)
    recipes = each_of(ShrinkRecipe.of, denoisers, recipe, ratio=ratio, **words)
    batches_of = read_batches(batches, denoisers, isinstance(model, nn.Module))
    calls = {
        name: _checked(denoiser, calls_on_device(denoiser, batches_of[name] or ()))
        for name, denoiser in denoisers.items()
    }
    with telling(progress) as tell:
        ready = {
            name: smaller_of(
                denoiser, calls[name], recipes[name], told_by_name(tell, name, denoisers)
            )
            for name, denoiser in denoisers.items()
        }
        outcomes = {name: make_smaller_(smaller) for name, smaller in ready.items()}
    return ShrinkOutcome.joined({n: replace(part, component=n) for n, part in outcomes.items()})


def _checked(denoiser: nn.Module, calls: Iterable[Call]) -> list[Call]:
    """Calls that the denoiser can run. Raises DitpruneError."""
    with fitting("batches"):
        checked = list(calls)
        check_has_calls(checked)
        run_call(denoiser, checked[0])
    return checked


def shrink(
    model: str | Path,
    out: str | Path,
    batches: Any = None,
    ratio: float | Mapping[str, float] | None = None,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    max_memory: str | int | None = None,
    overwrite: bool = False,
    progress: ProgressArgument = None,
    recipe: ShrinkRecipes = None,
    like: str | Path | None = None,
    **words: Any,
) -> ShrinkOutcome:
    """Shrink a model folder into another, with one block of a denoiser in memory.

        outcome = ditprune.shrink("bundled", "small", "calls", ratio=0.3, modulation="none")
        print(outcome.after.num_parameters / outcome.before.num_parameters)
        pipe = diffusers.DiTPipeline.from_pretrained("small")

    `out` appears whole or not at all. A call that was stopped goes on when it is made again.

    Args:
        model: a pipeline's folder, a denoiser's folder, a hub id, or `bundled`.
        out: the new folder, a mirror of the model's.
        batches: as for `shrink_`. Without them a pipeline is sampled with the defaults; the calls
            stay beside `out` and serve the next call.
        ratio: share of the multiplications of attentions and MLPs that goes; 0.3 by default.
        device, dtype: where and in which dtype the denoiser runs; the CPU and float32 by default.
            What is written keeps the dtype that it has.
        max_memory: in bytes or as `"8GB"`; hidden states that do not fit are kept on the disk.
        overwrite: replace an `out` that ditprune wrote.
        progress, recipe, words: as for `shrink_`.
        like: a folder that `shrink` wrote from the base of this fine-tune: the same goes, and what
            stays makes up for it; excludes `ratio`, `recipe` and `words`.

    Returns:
        Which units stay in each attention and MLP, and the sizes before and after.

    Raises:
        DitpruneError: before any work where it can be known, else with `out` as it was.
    """
    ready = check_shrink(
        model, out, batches, ratio, device=device, dtype=dtype, max_memory=max_memory,
        overwrite=overwrite, recipe=recipe, like=like, **words,
    )  # fmt: skip
    with telling(progress) as tell:
        return ready.run(tell)


@dataclass(frozen=True)
class ReadyToShrink:
    """What `shrink` was asked to do, checked as far as that needs no weights."""

    model: ModelFolder
    out: Path
    batches: Any
    recipes: Mapping[str, ShrinkRecipe]
    placement: Placement
    overwrite: bool
    likes: Mapping[str, Like]

    def run(self, progress: Progress) -> ShrinkOutcome:
        """Shrink it."""
        check_early(self.out, self.model.root, self.overwrite)
        calls = self._calls(progress)
        return ShrinkOutcome.joined(
            shrink_folder(
                self.model, self.out, calls.__getitem__, self.recipes, self.placement,
                self.overwrite, progress, self.likes,
            )
        )  # fmt: skip

    def plans(self, progress: Progress) -> dict[str, ShrinkPlan]:
        """What could go from each denoiser; of its calls, nothing else is written."""
        if self.likes:
            raise RecipeError("--dry-run and --like exclude each other: there is nothing to choose")
        check_early(self.out, self.model.root, self.overwrite)
        calls = self._calls(progress)
        return plan_folder(self.model, calls.__getitem__, self.recipes, self.placement, progress)

    def _calls(self, progress: Progress) -> dict[str, list[Call]]:
        """Those of each denoiser, sampled where none were given."""
        given = self.batches
        if given is None:
            given = self._sampled(progress)
        names, is_alone = tuple(self.model.denoisers), not self.model.is_pipeline
        if isinstance(given, (str, Path)):
            given = load_calls(given)
        if isinstance(given, Calls) and isinstance(given.source, CalibrationSet):
            component = given.component or component_alone(given.source, self.model)
            given, is_alone = given if component is None else given[component], False
        batches: Mapping[str, Iterable[Any] | None] = read_batches(given, names, is_alone)
        return {name: [Call.of(batch) for batch in batches[name] or ()] for name in names}

    def _sampled(self, progress: Progress) -> Path:
        """A calibration set beside `out`."""
        folder = self.out.parent / f"{self.model.root.resolve().name}.calls"
        if folder.is_dir():
            _log.info("no calls given: using those in %s", folder)
        else:
            name = self.model.name
            _log.info("no calls given: sampling %s with the defaults into %s", name, folder)
        blocks = {name: recipe.blocks for name, recipe in self.recipes.items()}
        sample_folder(self.model, folder, Sampling(), self.placement, progress, blocks)
        return folder


def check_shrink(
    model: str | Path, out: str | Path, batches: Any = None,
    ratio: float | Mapping[str, float] | None = None, *, device: str | None = None,
    dtype: str | torch.dtype | None = None, max_memory: str | int | None = None,
    overwrite: bool = False, recipe: ShrinkRecipes = None, like: str | Path | None = None,
    **words: Any,
) -> ReadyToShrink:  # fmt: skip
    """The checks of `shrink`, with its arguments. Raises DitpruneError."""
    check_before(path_of(out), yes_or_no("overwrite", overwrite), model)
    placement = Placement.of(device, dtype, max_memory)
    folder = located(model)
    likes: Mapping[str, Like] = {}
    if like is None:
        recipes = each_of(ShrinkRecipe.of, folder.denoisers, recipe, ratio=ratio, **words)
    else:
        check_no_words({"ratio": ratio, "recipe": recipe, **words})
        likes = likes_for(folder, path_of(like))
        recipes = {name: each.recipe() for name, each in likes.items()}
    if batches is None and not folder.is_pipeline:
        raise RecipeError(
            f"{folder.name}: a denoiser without its pipeline cannot be sampled; pass "
            "--calibration-set with calls of it"
        )
    return ReadyToShrink(folder, path_of(out), batches, recipes, placement, overwrite, likes)


def check_no_words(words: Mapping[str, Any]) -> None:
    """Refuse words of a recipe beside `like`. Raises RecipeError."""
    given = [word for word, value in words.items() if value is not None]
    if given:
        raise RecipeError(
            f"--like and --{given[0].replace('_', '-')} exclude each other: what goes is what went "
            "there; pass one of them"
        )
