"""How does a mask move between models? Taken from one, applied to or compared with another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditprune.checkpoints import mask_file
from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.compact.mask_bits import apply_, nonzero_bits
from ditprune.checkpoints.compact.packing import num_set
from ditprune.checkpoints.copy_folder import (
    beside,
    check_unchanged,
    copied_bytes,
    copy_identity,
    copy_other_files,
)
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.mask_file import MaskFile, check_targets
from ditprune.checkpoints.own_files import check_no_own_file
from ditprune.checkpoints.rewrite_tensors import TensorRewriter, written_tensors
from ditprune.checkpoints.shrunk.record import is_record
from ditprune.checkpoints.skeleton import (
    combined_fingerprint,
    num_parameters,
    skeleton,
    weight_fingerprints,
)
from ditprune.checkpoints.weights import Weights, layout_of, sha256
from ditprune.errors import ModelError
from ditprune.method.words import from_json
from ditprune.progress import Progress, silent
from ditprune.pruning.job import Outcome, TargetOutcome, base_of, claims
from ditprune.pruning.masks_in_memory import (
    MALFORMED_RECORDS,
    match_masks,
    recorded_outcome,
    targets_of_record,
)
from ditprune.writing.files import (
    MANIFEST,
    check_file,
    is_compact,
    read_manifest,
    write_manifest,
)
from ditprune.writing.staging import Staging, check_early, resumable_folder


@dataclass(frozen=True)
class FilledIn:
    """The zeros of a target that another model no longer has.

    Args:
        num_zero: weights that the mask removes.
        num_filled: how many of them are not zero.
    """

    num_zero: int
    num_filled: int

    @property
    def share(self) -> float:
        return self.num_filled / self.num_zero if self.num_zero else 0.0


def extract_masks(
    model: ModelFolder, out: Path, overwrite: bool = False, progress: Progress = silent
) -> tuple[int, int]:
    """Write the masks of a pruned folder's targets, dense or compact; they keep what is not zero.

    Returns:
        The number of weights under the masks, and the size of the file in bytes.

    Raises:
        ModelError: there is no manifest, or it does not describe these weights.
        OutputError: `out` cannot be written.
    """
    check_file(out, overwrite)
    check_no_own_file(out, model)
    folders = {n: f for n, f in model.denoisers.items() if (f / MANIFEST).is_file()}
    if not folders:
        raise ModelError(
            f"{model.denoiser}: no {MANIFEST}; expected a folder that `ditprune prune` wrote"
        )
    records = {name: _records(folder) for name, folder in folders.items()}
    weights = {name: open_weights(folder) for name, folder in folders.items()}
    num_weights = 0
    for name, claimed in records.items():
        shapes = {target: tuple(record["shape"]) for target, record in claimed["targets"].items()}
        check_targets(weights[name], shapes)
        num_weights += sum(num_out * num_in for num_out, num_in in shapes.values())
    masks = _masks(weights, records, progress)
    return num_weights, mask_file.write_masks(out, records, masks, overwrite)


def _records(folder: Path) -> dict[str, Any]:
    """The records of a manifest that a mask file holds. Raises ModelError."""
    content = read_manifest(folder)
    if is_record(content):
        raise ModelError(f"{folder}: is shrunk, not pruned, so it has no mask; prune it first")
    try:
        records = {key: content[key] for key in mask_file.RECORDS}
        records["targets"] = {
            name: {key: value for key, value in record.items() if key != "sha256"}
            for name, record in content["targets"].items()
        }
        for name, record in records["targets"].items():
            TargetOutcome.from_json({**record, "name": name})
        from_json(records["recipe"], "recipe")
        if not records["targets"]:
            raise ValueError("no targets")
    except MALFORMED_RECORDS as error:
        raise ModelError(
            f"{folder / MANIFEST}: cannot be read ({error!r}); run `ditprune verify`"
        ) from None
    return records


def _masks(
    weights: Mapping[str, Weights], records: Mapping[str, Any], progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """Every mask by `denoiser/target`, checked against the manifest."""
    for name, claimed in records.items():
        for number, (target, record) in enumerate(claimed["targets"].items(), start=1):
            bits = _nonzero(weights[name], target)
            num_zero = record["shape"][0] * record["shape"][1] - num_set(bits)
            if num_zero != record["num_zero"]:
                folder = weights[name].shards[0].parent
                raise ModelError(
                    f"{folder}: {target} has {num_zero} zeros, its {MANIFEST} says "
                    f"{record['num_zero']}; give the folder that `ditprune prune` wrote"
                )
            yield f"{name}/{target}", bits
            progress("extracting masks", number, len(claimed["targets"]))


def _nonzero(weights: Weights, target: str) -> np.ndarray:
    """The mask of a target's weights that are not zero."""
    entry = weights.entries[f"{target}.weight"]
    return nonzero_bits(weights.raw(entry), entry.dtype)


def apply_masks(
    model: ModelFolder,
    mask: MaskFile,
    out: Path,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Outcome]:
    """Write a copy of a model with zeros where the mask has them, and its manifest.

    Denoisers without masks are copied. `out` appears whole or not at all; the same call continues
    a killed run.

    Raises:
        ModelError: the model has other targets or shapes, is compact, or cannot be read.
        OutputError: `out` cannot be written.
    """
    masks_of = _matched(model, mask)
    check_early(out, model.root, overwrite)
    weights = _checked_weights(model, mask, masks_of)
    for name, masks in masks_of.items():
        recorded_outcome(mask, masks, num_parameters(model.denoisers[name], weights[name]), {})
    digest = sha256(np.memmap(mask.file, mode="r").data)
    identity = copy_identity(model, weights, {"mask": digest})
    size_bytes = copied_bytes(model, weights)
    with resumable_folder(out, model.root, size_bytes, identity, overwrite) as staging:
        if not staging.is_written:
            copy_other_files(model, weights, staging.part)
            for name in model.denoisers:
                _write(model, name, weights[name], mask, masks_of.get(name), staging, progress)
        outcomes = {}
        copied = {} if staging.is_written else beside(model, weights, staging.part)
        for name, masks in masks_of.items():
            records = written_tensors(staging.journal, name)
            num_nonzero = {
                target: records[f"{target}.weight"]["note"] for target in mask.shapes(masks)
            }
            size = num_parameters(model.denoisers[name], weights[name])
            outcomes[name] = outcome = recorded_outcome(mask, masks, size, num_nonzero)
            if not staging.is_written:
                folder = model.denoisers[name]
                hashes = {e.name: records[e.name]["sha256"] for e in weights[name].in_order()}
                prints = weight_fingerprints(weights[name], outcome.targets.values())
                base = base_of(model, folder, weights[name], combined_fingerprint(prints))
                origin = {"sha256": digest, "base": mask.denoisers[masks]["base"]}
                content = claims(replace(outcome, mask=origin), base, hashes, copied[name])
                write_manifest(staging.part / folder.relative_to(model.root), content)
        check_unchanged(model, weights, identity)
    return outcomes


def filled_in(
    model: ModelFolder, mask: MaskFile, progress: Progress = silent
) -> dict[str, dict[str, FilledIn]]:
    """By denoiser and target, how many weights of a model are not zero where the mask is.

    Raises ModelError as `apply_masks` does.
    """
    masks_of = _matched(model, mask)
    weights = _checked_weights(model, mask, masks_of)
    targets: dict[str, dict[str, FilledIn]] = {}
    for name, masks in masks_of.items():
        targets[name] = {}
        shapes = mask.shapes(masks)
        for number, (target, shape) in enumerate(shapes.items(), start=1):
            bits = mask.bits(masks, target)
            num_zero = shape[0] * shape[1] - num_set(bits)
            num_filled = num_set(_nonzero(weights[name], target) & ~bits)
            targets[name][target] = FilledIn(num_zero, num_filled)
            progress("comparing targets", number, len(shapes))
    return targets


def _matched(model: ModelFolder, mask: MaskFile) -> dict[str, str]:
    """As `match_masks`, for a folder whose weights are not compact. Raises ModelError."""
    for folder in model.denoisers.values():
        if is_compact(folder):
            raise ModelError(
                f"{folder}: its weights are compact; convert it first: "
                "`ditprune convert FOLDER --to dense -o DENSE`"
            )

    def print_of(name: str, recipe: Mapping[str, Any]) -> str:
        targets = targets_of_record(skeleton(model.denoisers[name]), recipe)
        return combined_fingerprint(
            weight_fingerprints(Weights(model.denoisers[name]), targets.values())
        )

    alone = None if model.is_pipeline else model.root.resolve().name
    return match_masks(model.denoisers, mask, print_of, alone)


def _checked_weights(
    model: ModelFolder, mask: MaskFile, masks_of: Mapping[str, str]
) -> dict[str, Weights]:
    """The weights of every denoiser. Raises ModelError if the masks do not fit them."""
    weights = {name: Weights(folder) for name, folder in model.denoisers.items()}
    for name, masks in masks_of.items():
        check_targets(weights[name], mask.shapes(masks))
    return weights


def _write(
    model: ModelFolder, name: str, weights: Weights, mask: MaskFile, masks: str | None,
    staging: Staging, progress: Progress,
) -> None:  # fmt: skip
    """Write a denoiser's tensors under the masks of a denoiser, if any.

    The note of each target is the number of its weights that are not zero.
    """
    folder, layout = model.denoisers[name].relative_to(model.root), layout_of(weights)
    targets = {} if masks is None else {f"{target}.weight": target for target in mask.shapes(masks)}
    with TensorRewriter(
        name, weights, layout, staging.part / folder, staging.journal, progress
    ) as rewriter:
        for entry, raw in rewriter:
            num_nonzero = None
            if masks is not None and entry.name in targets:
                apply_(raw, entry.dtype, mask.bits(masks, targets[entry.name]))
                num_nonzero = num_set(nonzero_bits(raw, entry.dtype))
            rewriter.write(entry, raw, num_nonzero)
