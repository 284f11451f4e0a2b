"""A denoiser larger than memory: every layer reads its weights from disk when it is called.

The module tree is built without weights; accelerate's hooks read each layer's tensors from the
safetensors files right before its forward, unpack packed ones, and drop them after it. What is
resident is one layer, the activations and the buffers; each call reads the whole model once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.checkpoints.compact.compact_folder import CompactWeights, open_weights
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError

# Of the memory allowed, what a resident denoiser may take; the rest is for activations.
_SHARE = 0.5


def is_too_large(folder: Path, place: Placement) -> bool:
    """Whether the denoiser's weights would take more than their share of the memory allowed."""
    if place.max_memory is None:
        return False
    size_bytes = open_weights(folder).num_parameters * place.dtype.itemsize
    return size_bytes > _SHARE * place.max_memory


def streamed(folder: Path, place: Placement) -> nn.Module:
    """The denoiser of a folder, in eval mode, with its weights left on disk."""
    from accelerate import dispatch_model, init_empty_weights

    tree, weights = skeleton(folder, takes_compact=True), open_weights(folder)
    with init_empty_weights(include_buffers=False), _default_dtype(place.dtype):
        denoiser = type(tree).from_config(tree.config)  # type: ignore[attr-defined]
    missing = sorted(dict(denoiser.named_parameters()).keys() - weights.entries.keys())
    if missing:
        raise ModelError(
            f"{folder}: tensor '{missing[0]}' is in config.json's model and not in the weights; "
            "fetch the model again"
        )
    wanted = _dtypes(denoiser, place.dtype)
    for name, buffer in denoiser.named_buffers():
        if name in weights.entries:
            buffer.data = weights.read(name).to(wanted[name])
    for name, parameter in denoiser.named_parameters():
        parameter.data = parameter.data.to(wanted[name])  # what is read later is cast to it
    parameters = {name: wanted[name] for name, _ in denoiser.named_parameters()}
    is_packed = isinstance(weights, CompactWeights)
    # It warns that weights are on disk, which is what was asked for.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    with torch.no_grad():
        dispatch_model(
            denoiser,
            device_map={"": "disk"},
            main_device=place.device,
            state_dict=_Unpacked(weights, parameters) if is_packed else None,
            offload_index={} if is_packed else _index(weights, parameters),
            force_hooks=True,
        )
    return denoiser.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Buffers that a constructor computes are in these numbers, as diffusers makes them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _index(weights: Weights, wanted: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """Where each tensor lies and the numbers it is wanted in, as accelerate reads it."""
    return {
        name: {
            "safetensors_file": str(weights.entries[name].file),
            "weight_name": name,
            "dtype": str(dtype).removeprefix("torch."),
        }
        for name, dtype in wanted.items()
    }


class _Unpacked(Mapping[str, Tensor]):
    """The parameters by name, each unpacked when it is asked for, in the numbers wanted."""

    def __init__(self, weights: Weights, wanted: Mapping[str, torch.dtype]) -> None:
        self._weights, self._wanted = weights, wanted

    def __getitem__(self, name: str) -> Tensor:
        dtype = self._wanted[name]  # KeyError for a buffer, which is there already
        return self._weights.read(name).to(dtype)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read it
        return name in self._wanted

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)


def _dtypes(denoiser: nn.Module, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The numbers that each stored tensor is wanted in, as diffusers loads it.

    Some stay in float32 whatever is asked for, and what is not a real number stays what it is.
    """
    kept = set(getattr(denoiser, "_keep_in_fp32_modules", None) or [])
    return {
        name: tensor.dtype if not tensor.is_floating_point()
        else dtype if kept.isdisjoint(name.split("."))
        else torch.float32
        for name, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers())
    }  # fmt: skip
