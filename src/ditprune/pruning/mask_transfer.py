"""Whose zeros: a mask taken from one model, put onto another, compared with a third."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditprune.checkpoints import fingerprint, manifest, mask_file
from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.compact.mask_bits import apply_, nonzero_bits, num_filled_in, num_set
from ditprune.checkpoints.copy_folder import (
    copied_bytes,
    copy_other_files,
    header_hashes,
    sha256,
    stamp,
)
from ditprune.checkpoints.layout import layout_of
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.mask_file import MaskFile, check_targets
from ditprune.checkpoints.rewrite_tensors import Record, recorded, rewrite
from ditprune.checkpoints.weights import Entry, Weights
from ditprune.errors import DitpruneError, ModelError
from ditprune.method.recipe import from_json
from ditprune.progress import Progress, silent
from ditprune.pruning.outcome import Outcome, TargetOutcome, claims
from ditprune.targets.coverage import LeftOut
from ditprune.writing import identity as guards
from ditprune.writing.output import MANIFEST, check_file, is_compact
from ditprune.writing.staging import Staging, check_early, resumable_folder

_MALFORMED = (DitpruneError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


def extract(
    model: ModelFolder, out: Path, overwrite: bool = False, progress: Progress = silent
) -> tuple[int, int]:
    """Write the masks of a pruned folder's targets, dense or compact; a weight is kept if not zero.

    Returns:
        The weights that the masks are of, and the bytes of the file.

    Raises:
        ModelError: no manifest, or one that is not of these weights.
        OutputError: `out` cannot be written.
    """
    check_file(out, overwrite)
    folders = {n: f for n, f in model.denoisers.items() if (f / MANIFEST).is_file()}
    if not folders:
        raise ModelError(
            f"{model.denoiser}: no {MANIFEST}; expected a folder that `ditprune prune` wrote"
        )
    told = {name: _kept_claims(folder) for name, folder in folders.items()}
    weights = {name: open_weights(folder) for name, folder in folders.items()}
    for name, one in told.items():
        check_targets(weights[name], {t: tuple(r["shape"]) for t, r in one["targets"].items()})
    num_weights = sum(
        r["shape"][0] * r["shape"][1] for one in told.values() for r in one["targets"].values()
    )
    return num_weights, mask_file.write(out, told, _masks(weights, told, progress))


def _kept_claims(folder: Path) -> dict[str, Any]:
    """What of a manifest goes with the masks. Raises ModelError."""
    content = manifest.read(folder)
    try:
        told = {key: content[key] for key in mask_file.RECORDS}
        told["targets"] = {
            name: {key: value for key, value in record.items() if key != "sha256"}
            for name, record in content["targets"].items()
        }
        for name, record in told["targets"].items():
            TargetOutcome.from_json({**record, "name": name})
        from_json(told["recipe"], "recipe")
        if not told["targets"]:
            raise ValueError("no targets")
    except _MALFORMED as error:
        raise ModelError(
            f"{folder / MANIFEST}: cannot be read ({error!r}); run `ditprune verify`"
        ) from None
    return told


def _masks(
    weights: Mapping[str, Weights], told: Mapping[str, Any], progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """Every mask by `denoiser/target`, compared with the manifest."""
    for name, one in told.items():
        for number, (target, record) in enumerate(one["targets"].items(), start=1):
            entry = weights[name].entries[f"{target}.weight"]
            bits = nonzero_bits(weights[name].raw(entry), entry.dtype)
            num_zero = record["shape"][0] * record["shape"][1] - num_set(bits)
            if num_zero != record["num_zero"]:
                raise ModelError(
                    f"{entry.file.parent}: {target} has {num_zero} zeros, its {MANIFEST} says "
                    f"{record['num_zero']}; give the folder that `ditprune prune` wrote"
                )
            yield f"{name}/{target}", bits
            progress("extracting masks", number, len(one["targets"]))


_MALFORMED = (DitpruneError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class FilledIn:
    """What became of the zeros of a target.

    Args:
        num_zero: weights where the mask has a zero.
        num_filled: how many of them are not zero.
    """

    num_zero: int
    num_filled: int

    @property
    def share(self) -> float:
        return self.num_filled / self.num_zero if self.num_zero else 0.0


def apply(
    model: ModelFolder,
    mask: MaskFile,
    out: Path,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Outcome]:
    """Write a copy of a model with zeros where the mask has them, and a manifest beside them.

    `out` appears whole or not at all, and a killed run goes on. Denoisers without masks are copied.

    Raises:
        ModelError: the model has other targets or shapes, is compact, or cannot be read.
        OutputError: `out` cannot be written.
    """
    of_mask = _matched(model, mask)
    check_early(out, model.root, overwrite)
    weights = {name: Weights(folder) for name, folder in model.denoisers.items()}
    for name, of in of_mask.items():
        check_targets(weights[name], mask.shapes(of))
        _outcome(mask, of, weights[name], {})
    digest = _digest(mask.file)
    run = {
        "versions": manifest.versions(), "mask": digest, "files": stamp(model, weights),
        "json": guards.config_hash(model.root),
    }  # fmt: skip
    size_bytes = copied_bytes(model, weights)
    outcomes = {}
    with resumable_folder(out, model.root, size_bytes, run, overwrite) as staging:
        if not staging.is_written:
            copy_other_files(model, weights, staging.part)
        for name, one in weights.items():
            records = _write(model, name, one, mask, of_mask.get(name), staging, progress)
            if name in of_mask:
                outcomes[name] = _outcome(mask, of_mask[name], one, records)
                if not staging.is_written:
                    told = {"sha256": digest, "base": mask.denoisers[of_mask[name]]["base"]}
                    _write_manifest(model, name, one, outcomes[name], records, told, staging)
    return outcomes


def filled_in(
    model: ModelFolder, mask: MaskFile, progress: Progress = silent
) -> dict[str, dict[str, FilledIn]]:
    """By denoiser and target, how many weights of a model are not zero where the mask is.

    Raises ModelError as `apply` does.
    """
    of_mask = _matched(model, mask)
    weights = {name: Weights(model.denoisers[name]) for name in of_mask}
    for name, of in of_mask.items():
        check_targets(weights[name], mask.shapes(of))
    found: dict[str, dict[str, FilledIn]] = {}
    for name, of in of_mask.items():
        found[name] = {}
        shapes = mask.shapes(of)
        for number, (target, shape) in enumerate(shapes.items(), start=1):
            bits, entry = mask.bits(of, target), weights[name].entries[f"{target}.weight"]
            nonzero = nonzero_bits(weights[name].raw(entry), entry.dtype)
            num_zero = shape[0] * shape[1] - num_set(bits)
            found[name][target] = FilledIn(num_zero, num_filled_in(bits, nonzero))
            progress("comparing targets", number, len(shapes))
    return found


def _matched(model: ModelFolder, mask: MaskFile) -> dict[str, str]:
    """By denoiser of the model, the one of the mask; a single one serves a single one.

    Raises ModelError.
    """
    for folder in model.denoisers.values():
        if is_compact(folder):
            raise ModelError(
                f"{folder}: its weights are compact; convert it first: "
                "`ditprune convert FOLDER --to dense -o DENSE`"
            )
    if len(model.denoisers) == len(mask.denoisers) == 1:
        return {next(iter(model.denoisers)): next(iter(mask.denoisers))}
    missing = mask.denoisers.keys() - model.denoisers.keys()
    if missing:
        raise ModelError(
            f"{mask.file}: has masks of {', '.join(sorted(missing))}, the model has "
            f"{', '.join(model.denoisers)}; expected a pipeline with the same denoisers"
        )
    return {name: name for name in model.denoisers if name in mask.denoisers}


def _write(
    model: ModelFolder, name: str, weights: Weights, mask: MaskFile, of: str | None,
    staging: Staging, progress: Progress,
) -> Mapping[str, Record]:  # fmt: skip
    """Write a denoiser's tensors, with the masks `of` a denoiser; notes say how many are left."""
    if staging.is_written:
        return recorded(staging.journal, name)
    targets = {} if of is None else {f"{target}.weight": target for target in mask.shapes(of)}

    def change(entry: Entry, raw: memoryview) -> tuple[memoryview, int | None]:
        if of is None or entry.name not in targets:
            return raw, None
        apply_(raw, entry.dtype, mask.bits(of, targets[entry.name]))
        return raw, num_set(nonzero_bits(raw, entry.dtype))

    folder = staging.part / model.denoisers[name].relative_to(model.root)
    return rewrite(name, weights, layout_of(weights), folder, staging.journal, change, progress)


def _write_manifest(
    model: ModelFolder, name: str, weights: Weights, outcome: Outcome,
    records: Mapping[str, Record], told: Mapping[str, Any], staging: Staging,
) -> None:  # fmt: skip
    folder = model.denoisers[name]
    hashes = {entry.name: records[entry.name]["sha256"] for entry in weights.in_order()}
    content = claims(outcome, _base(model, folder, weights, outcome), hashes, None)
    manifest.write(staging.part / folder.relative_to(model.root), {**content, "mask": dict(told)})


def _outcome(mask: MaskFile, of: str, weights: Weights, records: Mapping[str, Record]) -> Outcome:
    """What the mask's manifest said, with the zeros that there are now.

    Raises ModelError where it is no manifest.
    """
    told = mask.denoisers[of]
    try:
        targets = {}
        for name, record in told["targets"].items():
            target = TargetOutcome.from_json({**record, "name": name})
            kept = records.get(f"{name}.weight", {}).get("note")
            num_zero = target.num_zero if kept is None else target.num_weights - kept
            targets[name] = TargetOutcome.from_json({**record, "name": name, "num_zero": num_zero})
        return Outcome(
            targets,
            dict(told["skipped"]),
            {n: LeftOut(n, o["num_weights"], o["reason"]) for n, o in told["left_out"].items()},
            weights.num_parameters,
            from_json(told["recipe"], "recipe"),
            told["cag_threshold"],
        )
    except _MALFORMED as error:
        raise ModelError(
            f"{mask.file}: its records cannot be read ({error!r}); extract it again"
        ) from None


def _base(model: ModelFolder, folder: Path, weights: Weights, outcome: Outcome) -> dict[str, Any]:
    """What tells the model that the mask was put onto from others."""
    own = fingerprint.of_weights(weights, outcome.targets.values())
    return {
        "model": model.root.resolve().name,
        "fingerprint": fingerprint.combined(own),
        "config_sha256": sha256((folder / "config.json").read_bytes()),
        "headers_sha256": header_hashes(weights),
    }


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
