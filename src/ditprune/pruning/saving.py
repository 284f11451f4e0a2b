"""How does a model that was pruned in memory get its manifest and its mask?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ditprune.checkpoints.copy_folder import beside
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.checkpoints.mask_file import MaskFile, check_targets
from ditprune.checkpoints.skeleton import num_parameters, weight_fingerprints
from ditprune.checkpoints.weights import Weights, as_tensor, dtype_of, sha256
from ditprune.errors import ModelError, OutputError
from ditprune.pruning.job import Outcome, base_of, claims
from ditprune.pruning.mask_transfer import extract_masks
from ditprune.pruning.verify import false_claims
from ditprune.writing.files import MANIFEST, is_compact, write_manifest
from ditprune.writing.model_files import MASK


def save_outcome(outcome: Outcome, folder: Path) -> None:
    """Write ditprune.json and the mask into the folder that `save_pretrained` wrote.

    Args:
        folder: of a denoiser; or of a pipeline, where each denoiser's files go to its own folder.

    Raises ModelError if the folder does not hold the pruned weights; then nothing is written.
    """
    model = locate(str(folder))
    parts = outcome.denoisers
    if len(parts) == len(model.denoisers) == 1:
        folders = dict.fromkeys(parts, model.denoiser)
    else:
        folders = dict(model.denoisers)
    # What was pruned outside a pipeline is named as the first denoiser, whichever it was.
    if len(parts) == 1 < len(folders):
        raise ModelError(
            f"{folder}: has {', '.join(folders)}, and the outcome is of a single denoiser; save it "
            f"to that one's folder, as in {folder / next(iter(folders))}"
        )
    if missing := parts.keys() - folders.keys():
        raise ModelError(
            f"{folder}: has {', '.join(model.denoisers)}, and {', '.join(sorted(missing))} was "
            "pruned; expected the pipeline's folder, or save outcome.denoisers['…'] on its own"
        )
    weights = {name: _weights_of(part, folders[name]) for name, part in parts.items()}
    everyone = {name: weights.get(name) or Weights(folder) for name, folder in folders.items()}
    copied = beside(ModelFolder(model.name, model.root, folders), everyone)
    contents = {
        name: _claims_of(part, folders[name], weights[name], copied[name])
        for name, part in parts.items()
    }
    for name, content in contents.items():
        _write(folders[name], content)
    for name in parts:
        alone = ModelFolder(name, folders[name], {name: folders[name]})
        extract_masks(alone, folders[name] / MASK, overwrite=True)


def _weights_of(outcome: Outcome, folder: Path) -> Weights:
    """The weights in a folder, if they are those that were pruned. Raises ModelError."""
    if is_compact(folder):
        raise ModelError(f"{folder}: its weights are compact; save it with save_pretrained")
    weights = Weights(folder)
    check_targets(weights, {name: target.shape for name, target in outcome.targets.items()})
    _check_weights(outcome, weights, folder)
    _check_mask(folder / MASK)
    return weights


def _claims_of(
    outcome: Outcome, folder: Path, weights: Weights, copied: Mapping[str, str]
) -> dict[str, object]:
    """The manifest of these weights, with the hashes and the zeros that are on disk."""
    hashes, targets = {}, dict(outcome.targets)
    for entry in weights.in_order():
        raw = weights.raw(entry)
        hashes[entry.name] = sha256(raw)
        name = entry.name.removesuffix(".weight")
        if name in targets and name != entry.name:
            num_zero = int(torch.count_nonzero(as_tensor(raw, entry) == 0))
            targets[name] = replace(targets[name], num_zero=num_zero)
    model = ModelFolder(str(folder), folder, {outcome.component: folder})
    base = base_of(model, folder, weights, outcome.fingerprint)
    here = replace(outcome, targets=targets, num_parameters=num_parameters(folder, weights))
    return claims(here, base, hashes, copied)


def _check_mask(file: Path) -> None:
    """Refuse a file that is no mask where the mask goes. Raises OutputError."""
    if file.exists():
        try:
            MaskFile(file)
        except ModelError:
            raise OutputError(
                f"{file}: lies where the mask goes, and is none of ditprune; move it away"
            ) from None


def _check_weights(outcome: Outcome, weights: Weights, folder: Path) -> None:
    """Refuse other weights than those that were pruned; in another dtype their zeros tell.

    Raises ModelError.
    """
    prints = weight_fingerprints(weights, outcome.targets.values())
    for name, expected in outcome.pruned.items():
        dtype = dtype_of(weights.entries[f"{name}.weight"])
        if expected.startswith(f"{dtype} ") and expected != f"{dtype} {prints[name]}":
            raise ModelError(
                f"{folder}: {name} is not the weight that was pruned; call save_pretrained after "
                "prune_, and save the outcome there"
            )


def _write(folder: Path, content: dict[str, object]) -> None:
    """Write a manifest that holds; put back what was there if it does not. Raises ModelError."""
    file = folder / MANIFEST
    before = file.read_bytes() if file.is_file() else None
    write_manifest(folder, content)
    false_claim = next(false_claims(ModelFolder(str(folder), folder, {"": folder})), None)
    if false_claim is None:
        return
    if before is None:
        file.unlink()
    else:
        file.write_bytes(before)
    raise ModelError(
        f"{folder}: does not hold the weights that were pruned ({false_claim}); call "
        "save_pretrained after prune_, and save the outcome there"
    )
