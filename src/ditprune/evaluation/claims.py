"""What does a pruned folder say of itself, and is it a copy of the dense model?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.checkpoints.shrunk.form import marked_form
from ditprune.checkpoints.shrunk.record import before_pruning, is_record
from ditprune.denoiser.pipeline import check_denoiser
from ditprune.errors import ModelError
from ditprune.evaluation.accounting import Stock
from ditprune.evaluation.in_memory import AnyModel
from ditprune.reporting.told import facts_of_denoisers
from ditprune.targets.discover import Target, discover
from ditprune.writing.files import MANIFEST, read_manifest
from ditprune.writing.json_file import MALFORMED

_OF_TARGETS = [part.name for part in fields(Target) if part.name != "name"]


@dataclass(frozen=True)
class Claims:
    """What a model says of itself.

    Args:
        asked: the sparsity or the pattern; None without a manifest.
        recipe: from the manifest, the first one if there are several.
        statistics: what the manifest says of the statistics; None if the recipe read none.
        targets: the targets of each denoiser by name, from its manifest or from its structure.
        has_mask: whether the mask came from another model.
        told: what stays dense, was dropped or was not reached, from the manifests.
        recipes: by denoiser, where there are several that differ; there is no `asked` then.
        is_shrunk: whether layers are smaller than the dense model's.
    """

    asked: Any
    recipe: Mapping[str, Any] | None
    statistics: Mapping[str, Any] | None
    targets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    has_mask: bool = False
    told: tuple[str, ...] = ()
    recipes: Mapping[str, Any] = field(default_factory=dict)
    is_shrunk: bool = False


def claims_of(model: AnyModel, dense: Mapping[str, nn.Module]) -> Claims:
    """What the manifests of a model claim, or its structure if it has none.

    Raises ModelError for a model that is not a copy of the dense one.
    """
    if model.denoisers.keys() != dense.keys():
        raise ModelError(
            f"{model.name}: has the denoisers {', '.join(model.denoisers)}, the dense model "
            f"{', '.join(dense)}; expected a pruned copy of it"
        )
    claims = [_read(model, name, source, dense[name]) for name, source in model.denoisers.items()]
    first = next((claim for claim in claims if claim.recipe is not None), claims[0])
    targets = {name: records for claim in claims for name, records in claim.targets.items()}
    recipes = {n: claim.recipe for n, claim in zip(model.denoisers, claims, strict=True)
               if claim.recipe is not None}  # fmt: skip
    differ = any(recipe != first.recipe for recipe in recipes.values())
    return replace(
        first,
        asked=None if differ else first.asked,
        targets=targets,
        has_mask=any(claim.has_mask for claim in claims),
        told=tuple(facts_of_denoisers(_folders(model))),
        recipes=recipes if differ else {},
        is_shrunk=any(claim.is_shrunk for claim in claims),
    )


def _folders(model: AnyModel) -> dict[str, Path]:
    """The folders of its denoisers; none of those in memory."""
    return {name: part for name, part in model.denoisers.items() if isinstance(part, Path)}


def dense_claims(denoisers: Mapping[str, nn.Module], pruned: Sequence[Claims] = ()) -> Claims:
    """The same for the dense model: sparsity 0, targets from its structure.

    Beside them stand those of its pruned copies, whose recipes may say where the blocks are.
    """
    targets = {name: _targets_in(tree) for name, tree in denoisers.items()}
    for claims in (claims for claims in pruned if not claims.is_shrunk):
        for name, records in claims.targets.items():
            for target, record in records.items():
                targets[name].setdefault(target, {k: record.get(k) for k in _OF_TARGETS})
    return Claims(0.0, None, None, targets)


def _targets_in(denoiser: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: asdict(target) for name, target in discover(denoiser).items()}


def _read(model: AnyModel, denoiser: str, source: Path | nn.Module, dense: nn.Module) -> Claims:
    """What the manifest of one denoiser claims, or its structure if it has none."""
    tree = source if isinstance(source, nn.Module) else check_denoiser(source)
    if type(tree) is not type(dense):
        raise ModelError(
            f"{model.name}: holds a {type(tree).__name__}, expected a {type(dense).__name__} as "
            "in the dense model"
        )
    content = None
    if isinstance(source, Path) and (source / MANIFEST).is_file():
        content = read_manifest(source)
    is_shrunk = _shapes(tree) != _shapes(dense)
    if is_shrunk and not _was_shrunk(tree, content):
        raise ModelError(
            f"{model.name}: its parameters have other names or shapes than the dense model's; "
            "expected a pruned copy of it"
        )
    if content is None or is_record(content):
        claims = Claims(None, None, None, {denoiser: _targets_in(tree)})
    else:
        claims = _from_manifest(model, denoiser, content, tree)
    return replace(claims, is_shrunk=is_shrunk)


def _was_shrunk(tree: nn.Module, content: Mapping[str, Any] | None) -> bool:
    """Whether the model or its manifest says why it has fewer weights than its dense one."""
    is_told = content is not None and (is_record(content) or before_pruning(content) is not None)
    return is_told or marked_form(tree) is not None


def _from_manifest(
    model: AnyModel, denoiser: str, content: Mapping[str, Any], tree: nn.Module
) -> Claims:
    """What the manifest of a pruned folder claims. Raises ModelError if it cannot be read."""
    try:
        recipe, targets = content["recipe"], dict(content["targets"])
        statistics = content.get("statistics")
        statistics = None if statistics is None else dict(statistics)
        asked = recipe["pattern"] or recipe["sparsity"]
        for name in targets:
            tree.get_parameter(f"{name}.weight")
            targets[name].get("block")
        json.dumps([recipe, targets], allow_nan=False)  # results.json will hold parts of them
        if not targets:
            raise ValueError("no targets")
    except MALFORMED as error:
        raise ModelError(
            f"{model.name}: its {MANIFEST} cannot be read ({error!r}); run `ditprune verify`"
        ) from None
    has_mask = content.get("mask") is not None
    return Claims(asked, recipe, statistics, {denoiser: targets}, has_mask)


def _shapes(tree: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: parameter.shape for name, parameter in tree.named_parameters()}


def target_rows(claims: Claims, stock: Stock) -> list[dict[str, Any]]:
    """The `targets` of results.json.

    `role` is the name inside the block. With two denoisers, names begin with the denoiser's name.
    """
    rows = []
    for denoiser, targets in claims.targets.items():
        prefix = f"{denoiser}." if len(claims.targets) > 1 else ""
        shares = stock.shares(denoiser)
        for name, record in targets.items():
            block, shape = str(record.get("block") or ""), record.get("shape")
            rows.append({
                "name": prefix + name,
                "role": name.removeprefix(f"{block}."),
                "depth": record.get("depth"),
                "shape": list(shape) if isinstance(shape, (list, tuple)) else [],
                "sparsity": shares[name],
                "g_out": record.get("g_out"),
                "granularity": record.get("granularity"),
            })  # fmt: skip
    return rows
