"""Loads a diffusers pipeline, or a denoiser alone, from a folder: safetensors and known classes."""

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
from ditprune.denoiser import offload as stream
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, is_out_of_memory, reason_of
from ditprune.writing.json_file import read_json

_CPU = Placement()
_LIBRARIES = ("diffusers", "transformers")


def load_pipeline(model: ModelFolder, place: Placement = _CPU) -> Any:
    """The pipeline where it is asked for, silent, from safetensors and known classes only.

    Denoisers that exceed the placement's memory are streamed; everything else is loaded.
    """
    import diffusers

    check_components(model)
    for folder in model.denoisers.values():
        check_denoiser(folder)
    streamed = {
        name: stream.streamed(folder, place)
        for name, folder in model.denoisers.items()
        if stream.is_too_large(folder, place)
    }
    with _loading(model.name):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            model.root,
            use_safetensors=True,
            local_files_only=True,
            **_in_dtype(place),
            **streamed,
        )
        for name, component in pipeline.components.items():
            if isinstance(component, nn.Module) and name not in streamed:
                component.to(place.device).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_denoiser(folder: Path, place: Placement = _CPU) -> nn.Module:
    """A folder's denoiser in eval mode, streamed if it exceeds the placement's memory."""
    tree = check_denoiser(folder)
    if stream.is_too_large(folder, place):
        return stream.streamed(folder, place)
    with _loading(str(folder)):
        denoiser = type(tree).from_pretrained(  # type: ignore[attr-defined]
            folder, use_safetensors=True, local_files_only=True, **_in_dtype(place)
        )
        return denoiser.to(place.device).eval()


def check_denoiser(folder: Path) -> nn.Module:
    """Refuse what is not whole before diffusers sees it; returns the module tree, on meta."""
    open_weights(folder)
    return skeleton(folder, takes_compact=True)


def _in_dtype(place: Placement) -> dict[str, torch.dtype]:
    """The argument of from_pretrained, under the name that the installed diffusers takes."""
    from diffusers.utils import deprecation_utils

    # Renamed in July 2026, with this function for those who still use the old name.
    is_renamed = hasattr(deprecation_utils, "_resolve_dtype")
    return {"dtype" if is_renamed else "torch_dtype": place.dtype}


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """diffusers, silent for as long as the block runs; its refusals become ours."""
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

    Returns the names of the pipeline's class and of its scheduler's. Raises ModelError.
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
        elif isinstance(value, list) and value != [None, None]:
            library = value[0] if value else None
            if library not in _LIBRARIES and not hasattr(diffusers.pipelines, str(library)):
                raise ModelError(
                    f"{file}: component '{name}' comes from {library!r}, expected one of "
                    f"{', '.join(_LIBRARIES)}; code from model folders is never run"
                )
            _check_no_module(model.root / name / f"{library}.py")
    scheduler = index.get("scheduler")
    named = scheduler[1:2] if isinstance(scheduler, list) else []
    return str(index.get("_class_name")), str(named[0] if named else None)


def _check_no_module(file: Path) -> None:
    """Refuse a module that diffusers would take a class from before its library."""
    if file.exists():
        raise ModelError(
            f"{file}: diffusers would run it; remove it, code from model folders is never run"
        )
