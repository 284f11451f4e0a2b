"""Reads a folder of ours back from disk and lists every claim of its manifest that is false."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ditprune.checkpoints.compact.compact_folder import CompactWeights, open_weights
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.shrunk.record import before_pruning, is_record
from ditprune.checkpoints.skeleton import num_parameters
from ditprune.checkpoints.weights import Entry, Weights, as_tensor, sha256
from ditprune.errors import DitpruneError, ModelError
from ditprune.method.granularity import CAG, GRANULARITIES, NM
from ditprune.method.recipe import Recipe
from ditprune.method.words import from_json
from ditprune.pruning.error_bound import ErrorBound
from ditprune.pruning.verify_files import false_files
from ditprune.pruning.verify_shrunk import false_shapes, false_shrunk
from ditprune.targets.matrix import matrix_shape
from ditprune.writing.files import MANIFEST, MANIFEST_FORMAT, is_compact, read_manifest
from ditprune.writing.json_file import MALFORMED

# What reading a manifest raises when someone has changed its form.
_MALFORMED = (DitpruneError, *MALFORMED)


def false_claims(model: ModelFolder) -> Iterator[str]:
    """One line for every false claim; none where all hold.

    Checked for each denoiser: the recipe can be read; config.json is the dense model's; every
    untouched tensor is byte-identical to the dense model's; every pruned tensor has the bytes that
    were written, the zeros that are claimed, and in every group at least those the recipe asks for
    (N:M included); the totals are the sums. A compact folder is unpacked for it, and has the bytes
    that were packed. Lines name the denoiser where there are several. All other parts of a
    pipeline have the bytes that were copied, and no other file is there that may run.

    Of a shrunk folder: what went leads to the shapes on disk and to the form in config.json.

    Raises ModelError where there is no manifest at all.
    """
    if not any(map(_has_manifest, model.denoisers.values())):
        raise ModelError(
            f"{model.denoiser}: no {MANIFEST}; expected a folder that `ditprune prune` wrote"
        )
    for name, folder in model.denoisers.items():
        prefix = f"{name}: " if len(model.denoisers) > 1 else ""
        yield from (f"{prefix}{claim}" for claim in _of_denoiser(folder))
    yield from false_files(model)


def _has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or is_compact(folder)


def _of_denoiser(folder: Path) -> Iterator[str]:
    if not _has_manifest(folder):
        yield f"no {MANIFEST}; expected one for each denoiser"
        return
    try:
        weights = open_weights(folder)
    except ModelError as error:
        yield f"the weights are not those that were written: {error}"
        return
    if isinstance(weights, CompactWeights) and not weights.keeps_config(folder):
        yield "config.json: is not the dense model's with our name in it"
    if (folder / MANIFEST).is_file():
        try:
            claims = read_manifest(folder)
            false = false_shrunk if is_record(claims) else _false_pruned
            yield from false(claims, folder, weights)
        except _MALFORMED as error:
            yield f"{MANIFEST}: cannot be read ({error!r}); expected the manifest that was written"
    else:  # convert packed what was pruned without a manifest
        yield from (raw for _, raw in _tensors(weights) if isinstance(raw, str))


def _tensors(weights: Weights) -> Iterator[tuple[Entry, memoryview | str]]:
    """Every tensor with its bytes, or with the reason why they cannot be had."""
    for entry in weights.in_order():
        try:
            yield entry, weights.raw(entry)
        except ModelError as error:
            yield entry, str(error)


def _false_pruned(claims: Mapping[str, Any], folder: Path, weights: Weights) -> Iterator[str]:
    """Raises one of `_MALFORMED` where it cannot be read."""
    recipe = from_json(claims["recipe"], "recipe")
    targets = {f"{name}.weight": (name, dict(t)) for name, t in claims["targets"].items()}
    untouched = dict(claims["untouched"])
    if claims["cag_threshold"] != recipe.cag_threshold:
        yield (
            f"cag_threshold: {claims['cag_threshold']} claimed, the recipe says "
            f"{recipe.cag_threshold}"
        )
    yield from _false_error(claims.get("max_error"), recipe)
    yield from _false_totals(claims, folder, weights)
    yield from _false_base(claims["base"], folder, weights)
    record = before_pruning(claims)
    yield from false_shapes(record, folder, weights) if record is not None else ()
    for name in sorted((targets.keys() | untouched.keys()) - weights.entries.keys()):
        yield f"{name}: missing from the weights"
    for entry, raw in _tensors(weights):
        if isinstance(raw, str):
            yield raw
        elif entry.name in untouched:
            if sha256(raw) != untouched[entry.name]:
                yield f"{entry.name}: differs from the dense model, expected the same bytes"
        elif entry.name in targets:
            name, target = targets[entry.name]
            try:
                yield from _false_target(name, target, entry, raw, recipe)
            except _MALFORMED as error:
                yield f"{name}: its record in {MANIFEST} cannot be read ({error!r})"
        else:
            yield f"{entry.name}: is in the weights and not in {MANIFEST}"


def _false_target(
    name: str,
    target: Mapping[str, Any],
    entry: Entry,
    raw: memoryview,
    recipe: Recipe,
) -> Iterator[str]:
    shape = matrix_shape(entry.shape)
    if list(shape) != list(target["shape"]):
        yield f"{name}: shape {list(shape)} on disk, {target['shape']} claimed"
        return
    is_zero = as_tensor(raw, entry) == 0
    num_zero = int(torch.count_nonzero(is_zero))
    if num_zero != target["num_zero"]:
        yield f"{name}: {num_zero} zeros on disk, {target['num_zero']} claimed"
    groups = _groups(target["granularity"], recipe)
    if isinstance(recipe.granularity, CAG):
        chosen = recipe.granularity.choose(target["g_out"]).name
        if chosen != groups.name:
            yield f"{name}: {groups.name} claimed, its G_out {target['g_out']} leads to {chosen}"
    num_groups, size = groups.group_shape(*shape)
    asked = size - groups.num_keep(size, _share(target, recipe))
    if (num_groups, num_groups * asked) != (target["num_groups"], target["num_asked"]):
        yield (
            f"{name}: the recipe asks for {num_groups * asked} weights in {num_groups} groups, "
            f"{target['num_asked']} in {target['num_groups']} claimed"
        )
    if target["num_pruned"] != target["num_asked"]:
        yield f"{name}: {target['num_pruned']} weights removed, {target['num_asked']} asked"
    short = torch.count_nonzero(is_zero.view(num_groups, size), dim=1) < asked
    if short.any():
        yield (
            f"{name}: {int(short.sum())} of {num_groups} groups ({groups.name}) have fewer than "
            f"{asked} zeros, first group {int(short.nonzero()[0])}"
        )
    if sha256(raw) != target["sha256"]:
        yield f"{name}: its bytes are not those that were written"


def _false_error(content: Any, recipe: Recipe) -> Iterator[str]:
    """Of the error that decided the share; raises one of `MALFORMED` where it cannot be read."""
    if recipe.max_error is not None:
        raise ValueError("the recipe holds a max_error, expected the share that it led to")
    if content is None:
        return
    try:
        ErrorBound(**content)
    except ValueError as error:
        yield str(error)
    if recipe.sparsity is None:
        yield "max_error: the recipe has a pattern, which excludes it"


def _share(target: Mapping[str, Any], recipe: Recipe) -> float | None:
    """The share a target was to lose: the recipe's, or its own under an allocation."""
    if recipe.allocation == "uniform":
        return recipe.sparsity
    return float(target["sparsity"])


def _groups(granularity: str, recipe: Recipe) -> Any:
    """The groups a manifest names, which must be ones its recipe can lead to."""
    if isinstance(recipe.granularity, NM):
        if granularity != recipe.granularity.name:
            raise ValueError(
                f"granularity {granularity}, the recipe says {recipe.granularity.name}"
            )
        return recipe.granularity
    if recipe.granularity.name not in ("cag", granularity) or granularity not in (
        "layer",
        "channel",
    ):
        raise ValueError(f"granularity {granularity}, the recipe says {recipe.granularity.name}")
    return GRANULARITIES[granularity]()


def _false_base(base: Mapping[str, Any], folder: Path, weights: Weights) -> Iterator[str]:
    config = folder / "config.json"
    if not config.is_file():
        yield "config.json: missing"
    elif sha256(_dense_config(config, weights)) != base["config_sha256"]:
        yield "config.json: is not the dense model's"
    if weights.header_hashes() != base["headers_sha256"]:
        yield "the headers of the shards (names, dtypes, shapes) are not the dense model's"


def _dense_config(file: Path, weights: Weights) -> bytes:
    return weights.config if isinstance(weights, CompactWeights) else file.read_bytes()


def _false_totals(claims: Mapping[str, Any], folder: Path, weights: Weights) -> Iterator[str]:
    if claims["format"] != MANIFEST_FORMAT:
        yield f"{MANIFEST}: format {claims['format']}, this version reads {MANIFEST_FORMAT}"
    totals, targets = claims["totals"], claims["targets"].values()
    num_weights = sum(math.prod(target["shape"]) for target in targets)
    num_pruned = sum(target["num_pruned"] for target in targets)
    size = weights.num_parameters
    if totals["num_parameters"] != size:  # buffers are no parameters
        size = num_parameters(folder, weights)
    actual = {
        "num_parameters": size,
        "num_targets": len(targets),
        "num_weights": num_weights,
        "num_pruned": num_pruned,
        "sparsity": num_pruned / num_weights,
        "model_sparsity": num_pruned / totals["num_parameters"],
    }
    for key, value in actual.items():
        if totals[key] != value:
            yield f"totals: {key} is {totals[key]}, the targets add up to {value}"
