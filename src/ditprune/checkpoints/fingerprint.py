"""Which weights: a hash that tells one model's targets from another's, whatever the dtype.

It covers every target's name and shape and three short runs of its values, as float32; so a
checkpoint stored in half precision and the same one loaded in float32 agree, and a fine-tune
does not. It reads kilobytes per layer, not the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from ditprune.checkpoints.weights import Weights
from ditprune.targets.discover import Target

_RUN = 1024


def _fingerprint(targets: Iterable[Target], read_slice: Callable[[str, int, int], Tensor]) -> str:
    digest = hashlib.sha256()
    for target in sorted(targets, key=lambda t: t.name):
        digest.update(f"{target.name} {target.shape}\n".encode())
        count = min(_RUN, target.num_weights)
        for start in sorted({0, (target.num_weights - count) // 2, target.num_weights - count}):
            digest.update(read_slice(target.name, start, count).float().numpy().tobytes())
    return digest.hexdigest()


def of_module(denoiser: nn.Module, targets: Iterable[Target]) -> str:
    """The fingerprint of a loaded denoiser's targets."""

    def read_slice(name: str, start: int, count: int) -> Tensor:
        flat = denoiser.get_parameter(f"{name}.weight").detach().reshape(-1)
        return flat[start : start + count].cpu()

    return _fingerprint(targets, read_slice)


def of_weights(weights: Weights, targets: Iterable[Target]) -> str:
    """The fingerprint of a checkpoint's targets on disk."""
    return _fingerprint(
        targets, lambda name, start, count: weights.read_slice(f"{name}.weight", start, count)
    )
