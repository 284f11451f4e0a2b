"""Which weights: a hash per target that tells one model from another, whatever the dtype.

It covers the name, the shape and three short runs of values, as float32; so a checkpoint stored
in half precision and the same one loaded in float32 agree, and a fine-tune does not. It reads
kilobytes per layer, not the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.targets.discover import Target, discover

_RUN = 1024  # values in each of the three runs
_DIGITS = 32  # hexadecimal, 128 bits


def _fingerprints(
    targets: Iterable[Target], read_slice: Callable[[str, int, int], Tensor]
) -> dict[str, str]:
    fingerprints = {}
    for target in targets:
        digest = hashlib.sha256(f"{target.name} {target.shape}\n".encode())
        count = min(_RUN, target.num_weights)
        for start in sorted({0, (target.num_weights - count) // 2, target.num_weights - count}):
            digest.update(read_slice(target.name, start, count).float().numpy().tobytes())
        fingerprints[target.name] = digest.hexdigest()[:_DIGITS]
    return fingerprints


def combined(fingerprints: Mapping[str, str]) -> str:
    """One fingerprint for all targets of a model."""
    lines = "".join(f"{name} {fingerprints[name]}\n" for name in sorted(fingerprints))
    return hashlib.sha256(lines.encode()).hexdigest()[:_DIGITS]


def of_module(denoiser: nn.Module, targets: Iterable[Target]) -> dict[str, str]:
    """The fingerprints of a loaded denoiser's targets."""

    def read_slice(name: str, start: int, count: int) -> Tensor:
        flat = denoiser.get_parameter(f"{name}.weight").detach().reshape(-1)
        return flat[start : start + count].cpu()

    return _fingerprints(targets, read_slice)


def of_weights(weights: Weights, targets: Iterable[Target]) -> dict[str, str]:
    """The fingerprints of a checkpoint's targets on disk."""
    return _fingerprints(
        targets, lambda name, start, count: weights.read_slice(f"{name}.weight", start, count)
    )


def of_folder(folder: Path) -> dict[str, str]:
    """The fingerprints of all targets in a denoiser's folder, dense or compact."""
    targets = discover(skeleton(folder, takes_compact=True), auxiliary=True)
    return of_weights(open_weights(folder), targets.values())
