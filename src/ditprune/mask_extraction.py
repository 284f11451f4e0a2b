"""The masks of a pruned folder, into a file of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ditprune.checkpoints import manifest, mask_file
from ditprune.checkpoints.compact_weights import open_weights
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.mask_file import check_targets
from ditprune.checkpoints.output import MANIFEST, check_file
from ditprune.checkpoints.weights import Weights
from ditprune.compact.mask_bits import nonzero_bits, num_set
from ditprune.errors import DitpruneError, ModelError
from ditprune.outcome import TargetOutcome
from ditprune.progress import Report, silent
from ditprune.recipe import from_json

_MALFORMED = (DitpruneError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


def extract(
    model: ModelFolder, out: Path, overwrite: bool = False, report: Report = silent
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
    return num_weights, mask_file.write(out, told, _masks(weights, told, report))


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
    weights: Mapping[str, Weights], told: Mapping[str, Any], report: Report
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
            report("extracting masks", number, len(one["targets"]))
