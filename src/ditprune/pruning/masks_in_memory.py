"""Which masks belong to which denoisers, and how are they applied to loaded ones?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditprune.checkpoints.mask_file import MaskFile
from ditprune.checkpoints.skeleton import combined_fingerprint, module_fingerprints
from ditprune.checkpoints.weights import sha256
from ditprune.errors import DitpruneError, ModelError
from ditprune.method.words import from_json
from ditprune.pruning.job import Outcome, TargetOutcome
from ditprune.targets.coverage import LeftOut
from ditprune.targets.discover import Target, discover
from ditprune.targets.matrix import as_matrix
from ditprune.targets.writable import check_written, refuse_unwritable
from ditprune.writing.json_file import MALFORMED

MALFORMED_RECORDS = (DitpruneError, *MALFORMED)


def apply_to_modules_(denoisers: Mapping[str, nn.Module], mask: MaskFile) -> dict[str, Outcome]:
    """Zero the weights of loaded denoisers where the mask does; all checks before anything changes.

    Raises ModelError: other denoisers, targets or shapes, or malformed records.
    """
    masks_of = match_masks(denoisers, mask, partial(_print_of, denoisers))
    for name, masks in masks_of.items():
        blocks = _blocks_of(mask.denoisers[masks]["recipe"])
        refuse_unwritable(denoisers[name], mask.shapes(masks), blocks)
    weights = {
        name: {
            target: _weight_of(denoisers[name], target, shape, name)
            for target, shape in mask.shapes(masks).items()
        }
        for name, masks in masks_of.items()
    }
    sizes = {n: sum(p.numel() for p in denoisers[n].parameters()) for n in masks_of}
    for name, masks in masks_of.items():
        recorded_outcome(mask, masks, sizes[name], {})
        for target in weights[name]:
            mask.bits(masks, target)
    outcomes = {}
    digest = sha256(np.memmap(mask.file, mode="r").data)
    for name, masks in masks_of.items():
        record = mask.denoisers[masks]
        fingerprint = _print_of(denoisers, name, record["recipe"])
        num_nonzero = {}
        for target, weight in weights[name].items():
            keep = torch.from_numpy(
                np.unpackbits(mask.bits(masks, target), bitorder="little", count=weight.numel())
            )
            before = weight.clone()
            weight.masked_fill_(keep.view(weight.shape).to(weight.device) == 0, 0)
            check_written(denoisers[name], target, weight, before)
            num_nonzero[target] = int(torch.count_nonzero(weight))
        outcomes[name] = replace(
            recorded_outcome(mask, masks, sizes[name], num_nonzero),
            fingerprint=fingerprint,
            mask={"sha256": digest, "base": record["base"]},
        )
    return outcomes


def _weight_of(denoiser: nn.Module, target: str, shape: tuple[int, int], name: str) -> Tensor:
    """A target's weight as a matrix [C_out, C_in], a view. Raises ModelError."""
    try:
        weight = as_matrix(denoiser.get_parameter(f"{target}.weight").detach())
    except (AttributeError, ValueError):
        raise ModelError(
            f"{name}: has no matrix '{target}.weight', which the mask needs; expected a model of "
            "the same class and size"
        ) from None
    if tuple(weight.shape) != tuple(shape):
        raise ModelError(
            f"{name}: {target}.weight is {list(weight.shape)}, its mask {list(shape)}; expected a "
            "model of the same class and size"
        )
    return weight


def _print_of(denoisers: Mapping[str, nn.Module], name: str, recipe: Mapping[str, Any]) -> str:
    targets = targets_of_record(denoisers[name], recipe)
    return combined_fingerprint(module_fingerprints(denoisers[name], targets.values()))


def _try(
    print_of: Callable[[str, Mapping[str, Any]], str], name: str, recipe: Mapping[str, Any]
) -> str | None:
    """The fingerprint; None where the recipe names blocks that only another denoiser has."""
    try:
        return print_of(name, recipe)
    except DitpruneError:
        return None


def targets_of_record(denoiser: nn.Module, recipe: Mapping[str, Any]) -> dict[str, Target]:
    """All targets that a recipe, as JSON, chooses among."""
    return discover(denoiser, recipe.get("auxiliary") is True, _blocks_of(recipe))


def _blocks_of(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(recipe.get("blocks") or ())


def match_masks(
    denoisers: Collection[str], mask: MaskFile, print_of: Callable[[str, Mapping[str, Any]], str],
    folder_name: str | None = None,
) -> dict[str, str]:  # fmt: skip
    """Which denoiser of the mask goes with each denoiser of the model.

    If both have a single one, these two go together whatever their names. A denoiser that stands
    alone takes the masks that its own weights got, else those of its folder's name.

    Args:
        print_of: gives the combined fingerprint of a denoiser's weights, over the targets that a
            recipe (as JSON) has.
        folder_name: the name of the folder of a denoiser without a pipeline.

    Raises ModelError.
    """
    if len(denoisers) == len(mask.denoisers) == 1:
        return {next(iter(denoisers)): next(iter(mask.denoisers))}
    if len(denoisers) == 1:
        (name,) = denoisers
        matching = [
            part
            for part, record in mask.denoisers.items()
            if record["base"].get("fingerprint") == _try(print_of, name, record["recipe"])
        ]
        if not matching and folder_name is not None and folder_name in mask.denoisers:
            matching = [folder_name]
        if matching:
            return {name: matching[0]}
        raise ModelError(
            f"{mask.file}: has masks of {', '.join(mask.denoisers)}, and none of them was made "
            "from these weights; expected the pipeline, or one of its pruned denoisers"
        )
    missing = mask.denoisers.keys() - set(denoisers)
    if missing:
        raise ModelError(
            f"{mask.file}: has masks of {', '.join(sorted(missing))}, the model has "
            f"{', '.join(denoisers)}; expected a pipeline with the same denoisers"
        )
    return {name: name for name in denoisers if name in mask.denoisers}


def recorded_outcome(
    mask: MaskFile, masks: str, num_parameters: int, num_nonzero: Mapping[str, int]
) -> Outcome:
    """The outcome that the mask's manifest records, with the zeros that there are now.

    Raises ModelError if the records are malformed.
    """
    claimed = mask.denoisers[masks]
    try:
        targets = {}
        for name, record in claimed["targets"].items():
            target = TargetOutcome.from_json({**record, "name": name})
            if name in num_nonzero:
                target = replace(target, num_zero=target.num_weights - num_nonzero[name])
            targets[name] = target
        return Outcome(
            targets,
            dict(claimed["skipped"]),
            {n: LeftOut(n, o["num_weights"], o["reason"]) for n, o in claimed["left_out"].items()},
            num_parameters,
            from_json(claimed["recipe"], "recipe"),
        )
    except MALFORMED_RECORDS as error:
        raise ModelError(
            f"{mask.file}: its records cannot be read ({error!r}); extract it again"
        ) from None
