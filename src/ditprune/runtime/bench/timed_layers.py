"""Which layers are timed, with how many tokens, and with the model's zeros or trial ones?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ditprune.calibration.sample import Sampling, run_unit
from ditprune.calls import Call
from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import globs_in_manifest, skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.capture import counting_tokens, denoisers_of
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.steps import StepRecorder
from ditprune.errors import ModelError, RecipeError
from ditprune.method.masks import keep_best
from ditprune.method.recipe import Recipe
from ditprune.method.words import build
from ditprune.progress import Progress
from ditprune.runtime.swap import share_of_zeros
from ditprune.targets.blocks import Globs, globs_of
from ditprune.targets.discover import Target, discover
from ditprune.targets.matrix import as_matrix

_FEW_ZEROS = 0.005

NumTokens = dict[str, int]  # by layer


def trial_of(sparsity: float | None, pattern: str | None) -> Recipe | None:
    """How to prune a dense model by magnitude in memory; None if neither option is given.

    Raises RecipeError.
    """
    if sparsity is None and pattern is None:
        return None
    if sparsity == 0:
        raise RecipeError("--sparsity 0: expected 0 < sparsity < 1, the share to remove on trial")
    granularity = "channel" if pattern is None else None
    return build(saliency="magnitude", granularity=granularity, sparsity=sparsity, pattern=pattern)


def pruned_on_trial(weight: Tensor, trial: Recipe) -> Tensor:
    """The weight [C_out, C_in] without its smallest entries in each channel or N:M group."""
    groups = trial.groups(0)
    shape = groups.group_shape(*weight.shape)
    num_keep = groups.num_keep(shape[1], trial.sparsity)
    keep = keep_best(weight.float().abs().reshape(shape), num_keep)
    return weight * keep.reshape(weight.shape)


class TimedLayers(NamedTuple):
    """The layers of one denoiser that can be timed.

    Args:
        targets: its Linears by name.
        trial: prunes each weight as it is read; None for a pruned model.
        blocks: globs that say where the blocks are; empty if they are found.
    """

    folder: Path
    weights: Weights
    targets: Mapping[str, Target]
    trial: Recipe | None
    blocks: tuple[str, ...] = ()

    def read(self, name: str) -> Tensor:
        """The weight of a layer as it is timed, [C_out, C_in]."""
        weight = as_matrix(self.weights.read(f"{name}.weight"))
        return weight if self.trial is None else pruned_on_trial(weight, self.trial)

    def sparsities(self, progress: Progress) -> dict[str, float]:
        """The share of zeros of each layer, to two digits.

        A trial reads one layer of each shape only.
        """
        sparsities: dict[str, float] = {}
        by_shape: dict[tuple[int, int], float] = {}
        for number, (name, target) in enumerate(self.targets.items(), start=1):
            if self.trial is None or target.shape not in by_shape:
                by_shape[target.shape] = round(share_of_zeros(self.read(name)), 2)
            sparsities[name] = by_shape[target.shape]
            progress("counting zeros", number, len(self.targets))
        return sparsities


def find_timed_layers(
    model: ModelFolder, trial: Recipe | None, blocks: Globs = ()
) -> tuple[dict[str, TimedLayers], list[str]]:
    """The layers of each denoiser, and notes on those that cannot be timed.

    Without `blocks`, those of a pruned folder's manifest count.
    """
    layers, notes = {}, []
    for name, folder in model.denoisers.items():
        globs = globs_of(blocks, name) if blocks else globs_in_manifest(folder)
        targets = discover(skeleton(folder, takes_compact=True), blocks=globs)
        linears = {n: target for n, target in targets.items() if target.kind == "linear"}
        if len(linears) < len(targets):
            notes.append(
                f"{len(targets) - len(linears)} pointwise convolutions stay dense: sparse layers "
                "stand for Linears only"
            )
        layers[name] = TimedLayers(folder, open_weights(folder), linears, trial, globs)
    return layers, notes


def check_zeros(
    model: ModelFolder,
    layers: Mapping[str, TimedLayers],
    sparsities: Mapping[str, Mapping[str, float]],
) -> None:
    """Refuse a dense model without a trial, and a pruned one with a trial. Raises RecipeError."""
    if all(share <= _FEW_ZEROS for shares in sparsities.values() for share in shares.values()):
        raise RecipeError(
            f"{model.name}: its layers have no zeros to skip; pass --sparsity 0.5 (or --pattern "
            "2:4) to prune it by magnitude in memory, or name a pruned folder"
        )
    first = next(iter(layers.values()))
    stored = share_of_zeros(first.weights.read(f"{next(iter(first.targets))}.weight"))
    if first.trial is not None and stored > _FEW_ZEROS:
        raise RecipeError(
            f"{model.name}: {stored:.0%} of its first target are zeros already; leave "
            "--sparsity and --pattern out"
        )


def first_calls(
    model: ModelFolder,
    denoisers: Mapping[str, TimedLayers],
    sampling: Sampling,
    placement: Placement,
) -> tuple[dict[str, Call], dict[str, NumTokens]]:
    """The first call of each denoiser in a sampling run, and the most tokens of each layer in it.

    A single denoiser runs one step. Several run a whole schedule of two steps, so that each is
    called.

    Raises RecipeError for a bare denoiser, and ModelError if a denoiser is not called.
    """
    if not model.is_pipeline:
        raise RecipeError(
            f"{model.name}: is a bare denoiser, without a pipeline to take a call from; pass "
            "--num-tokens, or the pipeline's folder"
        )
    pipeline = load_pipeline(model, placement)
    names = {name: list(layers.targets) for name, layers in denoisers.items()}
    sampling = replace(sampling, num_samples=1, batch_size=1)
    modules = denoisers_of(pipeline, tuple(names))
    if len(names) > 1 and sampling.num_inference_steps is None:
        sampling = replace(sampling, num_inference_steps=2)
    is_single = len(names) == 1
    recorder = StepRecorder(
        pipeline, modules, 1, lambda num: dict.fromkeys({0, 0 if is_single else num - 1}, range(1))
    )
    layers = {
        (name, layer): modules[name].get_submodule(layer)
        for name, layer_names in names.items()
        for layer in layer_names
    }
    with counting_tokens(layers) as counts:
        run_unit(pipeline, sampling, 0, recorder)
    calls = {call.denoiser: call for call in reversed(recorder.taken[0])}
    for name in names.keys() - calls.keys():
        raise ModelError(
            f"{type(pipeline).__name__}: its {name} was not called in two steps; pass "
            "--num-tokens, or the folder of this denoiser"
        )
    tokens = {
        name: {layer: max(counts[name, layer]) for layer in layer_names if counts[name, layer]}
        for name, layer_names in names.items()
    }
    return calls, tokens
