"""How is a pipeline, or a denoiser alone, loaded? From safetensors and known classes only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.components import check_components
from ditprune.denoiser.offload import offloaded
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.quiet import quiet
from ditprune.errors import DitpruneError, ModelError, is_out_of_memory, reason_of
from ditprune.writing.files import is_compact

_CPU = Placement()
# The share of the memory allowed that weights may take; the rest is for activations.
_SHARE = 0.5


def load_pipeline(model: ModelFolder, placement: Placement = _CPU) -> Any:
    """Load a pipeline onto its device, without any output from diffusers.

    Denoisers that exceed the placement's memory are offloaded. Raises ModelError.
    """
    import diffusers

    check_components(model)
    for folder in model.denoisers.values():
        check_denoiser(folder)
    on_disk = {
        name: offloaded(folder, placement)
        for name, folder in model.denoisers.items()
        if _is_too_large(folder, placement)
    }
    with _loading(model.name):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            model.root,
            use_safetensors=True,
            local_files_only=True,
            **_in_dtype(placement),
            **on_disk,
        )
        for name, component in pipeline.components.items():
            if isinstance(component, nn.Module) and name not in on_disk:
                component.to(placement.device).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_denoiser(folder: Path, placement: Placement = _CPU) -> nn.Module:
    """Load a denoiser in eval mode; it is offloaded if it exceeds the placement's memory."""
    tree = check_denoiser(folder)
    if _is_too_large(folder, placement):
        return offloaded(folder, placement)
    with _loading(str(folder)):
        denoiser = type(tree).from_pretrained(  # type: ignore[attr-defined]
            folder, use_safetensors=True, local_files_only=True, **_in_dtype(placement)
        )
        return denoiser.to(placement.device).eval()


def check_denoiser(folder: Path) -> nn.Module:
    """Refuse a damaged folder before diffusers reads it; returns the module tree on meta."""
    _open(folder)
    return skeleton(folder, takes_compact=True)


def _open(folder: Path) -> Weights:
    return open_weights(folder) if is_compact(folder) else Weights(folder)


def _is_too_large(folder: Path, placement: Placement) -> bool:
    """Whether the weights would take more than their share of the memory allowed."""
    if placement.max_memory is None:
        return False
    size_bytes = _open(folder).num_parameters * placement.dtype.itemsize
    return size_bytes > _SHARE * placement.max_memory


def _in_dtype(placement: Placement) -> dict[str, torch.dtype]:
    """The dtype argument of from_pretrained, by its name in the installed diffusers."""
    from diffusers.utils import deprecation_utils

    # The argument was renamed in July 2026; this function translates the old name.
    is_renamed = hasattr(deprecation_utils, "_resolve_dtype")
    return {"dtype" if is_renamed else "torch_dtype": placement.dtype}


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Other libraries are silent inside the block, and their errors become ModelErrors."""
    try:
        with quiet():
            yield
    except DitpruneError:  # one line already
        raise
    except Exception as error:  # diffusers raises a dozen unrelated types
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{name}: diffusers cannot load it ({reason_of(error)})") from None
