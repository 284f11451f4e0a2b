"""What a pruned folder says of itself, and what is counted in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditprune.calibration.pipeline import check_denoiser
from ditprune.checkpoints import manifest
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.output import MANIFEST
from ditprune.checkpoints.weights import Weights
from ditprune.errors import ModelError
from ditprune.targets.discover import discover


def claimed_sparsity(
    model: ModelFolder, dense: Mapping[str, nn.Module]
) -> tuple[Any, dict[str, list[str]]]:
    """What the manifests asked for, and the targets of each denoiser.

    Refuses a model that is not a copy of the dense one. Raises ModelError.
    """
    if model.denoisers.keys() != dense.keys():
        raise ModelError(
            f"{model.name}: has the denoisers {', '.join(model.denoisers)}, the dense model "
            f"{', '.join(dense)}; expected a pruned copy of it"
        )
    asked, targets = None, {}
    for name, folder in model.denoisers.items():
        asked, targets[name] = _claims_of(model, folder, dense[name])
    return asked, targets


def _claims_of(model: ModelFolder, folder: Path, dense: nn.Module) -> tuple[Any, list[str]]:
    tree = check_denoiser(folder)
    if type(tree) is not type(dense):
        raise ModelError(
            f"{model.name}: holds a {type(tree).__name__}, expected a {type(dense).__name__} as "
            "in the dense model"
        )
    shapes, expected = (
        {name: tuple(parameter.shape) for name, parameter in one.named_parameters()}
        for one in (tree, dense)
    )
    if shapes != expected:
        raise ModelError(
            f"{model.name}: its parameters have other names or shapes than the dense model's; "
            "expected a pruned copy of it"
        )
    if not (folder / MANIFEST).is_file():
        return None, list(discover(tree))
    claims = manifest.read(folder)
    try:
        recipe, targets = claims["recipe"], list(claims["targets"])
        asked = recipe["pattern"] or recipe["sparsity"]
        for name in targets:
            tree.get_parameter(f"{name}.weight")
        if not targets:
            raise ValueError("no targets")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{model.name}: its {MANIFEST} cannot be read ({error!r}); run `ditprune verify`"
        ) from None
    return asked, targets


def zero_share(model: ModelFolder, targets: Mapping[str, Sequence[str]]) -> float:
    """The share of zeros in the targets, counted on disk."""
    num_zero = num_weights = 0
    for component, names in targets.items():
        weights = Weights(model.denoisers[component])
        for name in names:
            weight = weights.read(f"{name}.weight")
            num_zero += weight.numel() - int(torch.count_nonzero(weight))
            num_weights += weight.numel()
    return num_zero / num_weights
