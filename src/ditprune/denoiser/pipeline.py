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
from ditprune.denoiser.offload import offloaded
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, is_out_of_memory, reason_of
from ditprune.writing.files import is_compact
from ditprune.writing.json_file import read_json

_CPU = Placement()
_LIBRARIES = ("diffusers", "transformers")
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
    """diffusers is silent inside the block, and its errors become ModelErrors."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # diffusers raises a dozen unrelated types
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{name}: diffusers cannot load it ({reason_of(error)})") from None
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def check_components(model: ModelFolder) -> tuple[str, str]:
    """Refuse a pipeline whose index names code outside diffusers and transformers.

    Returns the class names of the pipeline and of its scheduler. Raises ModelError.
    """
    import diffusers

    if not model.is_pipeline:
        raise ModelError(
            f"{model.name}: is a bare denoiser, and sampling needs its pipeline; pass the "
            "pipeline's folder, or a --calibration-set sampled before"
        )
    file = model.root / "model_index.json"
    index = read_json(file)
    _check_no_module(model.root / "None.py")  # where diffusers looks when no module is named
    for name, value in index.items():
        if name == "_class_name":
            if not isinstance(value, str) or not hasattr(diffusers, value):
                raise ModelError(
                    f"{file}: pipeline class {value!r} is not in diffusers "
                    f"{diffusers.__version__}; code from model folders is never run"
                )
        elif _is_component(value):
            library = value[0] if value else None
            if library not in _LIBRARIES and not hasattr(diffusers.pipelines, str(library)):
                raise ModelError(
                    f"{file}: component '{name}' comes from {library!r}, expected one of "
                    f"{', '.join(_LIBRARIES)}; code from model folders is never run"
                )
            _check_no_module(model.root / name / f"{library}.py")
            _check_no_pipeline(model.root / name / "model_index.json")
    scheduler = index.get("scheduler")
    class_name = scheduler[1:2] if isinstance(scheduler, list) else []
    return str(index.get("_class_name")), str(class_name[0] if class_name else None)


def _is_component(value: object) -> bool:
    """Whether diffusers unpacks an index's value as (library, class); two letters unpack too."""
    return (isinstance(value, list) and value != [None, None]) or (
        isinstance(value, str) and len(value) == 2
    )


def _check_no_pipeline(index: Path) -> None:
    """Refuse a component that is a pipeline itself: nothing would check its own components."""
    if index.exists():
        raise ModelError(
            f"{index}: a component that is a pipeline itself is not loaded; remove the file, "
            "code from model folders is never run"
        )


def _check_no_module(file: Path) -> None:
    """Refuse a file that diffusers would run instead of its own library."""
    if file.exists():
        raise ModelError(
            f"{file}: diffusers would run it; remove it, code from model folders is never run"
        )
