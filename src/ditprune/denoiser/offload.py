"""How does a denoiser run that is larger than memory? Its weights stay on disk.

The module tree is built without weights. Right before the forward of each layer, accelerate's
hooks read its tensors from the safetensors files, unpack compact ones, and drop them after it.
Memory holds one layer, the activations and the buffers; each call reads the whole model once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.shrunk.build import reshape_
from ditprune.checkpoints.shrunk.form import marked_form
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.quiet import quiet
from ditprune.errors import ModelError


def offloaded(folder: Path, placement: Placement) -> nn.Module:
    """The denoiser of a folder, in eval mode, with its weights left on disk.

    Raises ModelError if a weight is missing.
    """
    from accelerate import dispatch_model

    weights = open_weights(folder)
    denoiser = without_weights(folder, weights, placement)
    dtypes = dtypes_of(denoiser, placement.dtype)
    parameters = {name: dtypes[name] for name, _ in denoiser.named_parameters()}
    with torch.no_grad(), quiet():  # accelerate would warn that weights are on disk, as asked
        dispatch_model(
            denoiser,
            device_map={"": "disk"},
            main_device=placement.device,
            state_dict=_OnDisk(weights, parameters),
            offload_index={},
            force_hooks=True,
        )
    return denoiser.eval()


def without_weights(folder: Path, weights: Weights, placement: Placement) -> nn.Module:
    """The denoiser of a folder, in eval mode, without its weights; its buffers are there.

    Raises ModelError if a weight is missing.
    """
    from accelerate import init_empty_weights

    tree = skeleton(folder, takes_compact=True)
    with init_empty_weights(include_buffers=False), _default_dtype(placement.dtype):
        denoiser = type(tree).from_config(tree.config)  # type: ignore[attr-defined]
        if (form := marked_form(tree)) is not None:
            reshape_(denoiser, form, {n: p.shape for n, p in tree.named_parameters()})
    missing = sorted(dict(denoiser.named_parameters()).keys() - weights.entries.keys())
    if missing:
        raise ModelError(
            f"{folder}: tensor '{missing[0]}' is in config.json's model and not in the weights; "
            "fetch the model again"
        )
    dtypes = dtypes_of(denoiser, placement.dtype)
    for name, buffer in denoiser.named_buffers():
        if name in weights.entries:
            buffer.data = weights.read(name).to(dtypes[name])
    for name, parameter in denoiser.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])  # later reads are cast to this dtype
    built: nn.Module = denoiser.eval()
    return built


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Constructors compute their buffers in this dtype inside the block, as in diffusers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _OnDisk(Mapping[str, Tensor]):
    """The parameters by name; each is read from its file, and cast to its dtype, when asked for."""

    def __init__(self, weights: Weights, dtypes: Mapping[str, torch.dtype]) -> None:
        self._weights, self._dtypes = weights, dtypes

    def __getitem__(self, name: str) -> Tensor:
        dtype = self._dtypes[name]  # KeyError for a buffer, which is there already
        return self._weights.read(name).to(dtype)

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._dtypes

    def __iter__(self) -> Iterator[str]:
        return iter(self._dtypes)

    def __len__(self) -> int:
        return len(self._dtypes)


def dtypes_of(denoiser: nn.Module, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each tensor after loading, as in diffusers.

    Some classes keep some tensors in float32; tensors that hold no real numbers keep their dtype.
    """
    in_float32 = set(getattr(denoiser, "_keep_in_fp32_modules", None) or [])
    return {
        name: tensor.dtype if not tensor.is_floating_point()
        else dtype if in_float32.isdisjoint(name.split("."))
        else torch.float32
        for name, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers())
    }  # fmt: skip
