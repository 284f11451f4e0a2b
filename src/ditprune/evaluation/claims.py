"""What a pruned folder says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.pipeline import check_denoiser
from ditprune.errors import ModelError
from ditprune.targets.discover import discover
from ditprune.writing.files import MANIFEST, read_manifest


@dataclass(frozen=True)
class Claims:
    """What a model says of itself.

    Args:
        asked: the sparsity or the pattern; None without a manifest.
        recipe: as in its manifest, the first of several.
        statistics: what its manifest says of those that it read; None where it read none.
        has_mask: whether its zeros are where another model's mask has them.
        targets: each denoiser's targets by name: what its manifest, or its structure, tells.
    """

    asked: Any
    recipe: Mapping[str, Any] | None
    statistics: Mapping[str, Any] | None
    targets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    has_mask: bool = False

    def names(self) -> dict[str, list[str]]:
        """The targets' names, by denoiser."""
        return {denoiser: list(own) for denoiser, own in self.targets.items()}


def claims_of(model: ModelFolder, dense: Mapping[str, nn.Module]) -> Claims:
    """What the manifests of a model claim, or its structure where there are none.

    Refuses a model that is not a copy of the dense one. Raises ModelError.
    """
    if model.denoisers.keys() != dense.keys():
        raise ModelError(
            f"{model.name}: has the denoisers {', '.join(model.denoisers)}, the dense model "
            f"{', '.join(dense)}; expected a pruned copy of it"
        )
    own = [_claims_of(model, name, model.denoisers[name], dense[name]) for name in model.denoisers]
    first = next((one for one in own if one.recipe is not None), own[0])
    targets = {name: found for one in own for name, found in one.targets.items()}
    return replace(first, targets=targets, has_mask=any(one.has_mask for one in own))


def structure_of(denoisers: Mapping[str, nn.Module]) -> Claims:
    """The targets of a dense model."""
    return Claims(0.0, None, None, {name: _found(one) for name, one in denoisers.items()})


def _found(tree: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: asdict(target) for name, target in discover(tree).items()}


def _claims_of(model: ModelFolder, denoiser: str, folder: Path, dense: nn.Module) -> Claims:
    """What one denoiser's manifest claims, or its structure where it has none."""
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
        return Claims(None, None, None, {denoiser: _found(tree)})
    claims = read_manifest(folder)
    try:
        recipe, targets = claims["recipe"], dict(claims["targets"])
        statistics = claims.get("statistics")
        statistics = None if statistics is None else dict(statistics)
        asked = recipe["pattern"] or recipe["sparsity"]
        for name in targets:
            tree.get_parameter(f"{name}.weight")
            targets[name].get("block")
        json.dumps([recipe, targets], allow_nan=False)  # results.json will hold parts of them
        if not targets:
            raise ValueError("no targets")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{model.name}: its {MANIFEST} cannot be read ({error!r}); run `ditprune verify`"
        ) from None
    has_mask = claims.get("mask") is not None
    return Claims(asked, recipe, statistics, {denoiser: targets}, has_mask)


def target_rows(claims: Claims, shares: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """The `targets` of results.json, given the share of zeros of each by denoiser.

    `role` is the name inside its block; of two denoisers the names begin with theirs.
    """
    rows = []
    for denoiser, targets in claims.targets.items():
        prefix = f"{denoiser}." if len(claims.targets) > 1 else ""
        for name, record in targets.items():
            block, shape = str(record.get("block") or ""), record.get("shape")
            rows.append({
                "name": prefix + name,
                "role": name.removeprefix(f"{block}."),
                "depth": record.get("depth"),
                "shape": list(shape) if isinstance(shape, (list, tuple)) else [],
                "sparsity": shares[denoiser][name],
                "g_out": record.get("g_out"),
                "granularity": record.get("granularity"),
            })  # fmt: skip
    return rows
