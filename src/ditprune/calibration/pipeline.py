"""Loads a diffusers pipeline from a folder, and calls it one way for labels and for prompts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ditprune.checkpoints.locate import ModelFolder, read_json
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.errors import ModelError, RecipeError

_LIBRARIES = ("diffusers", "transformers")


def load_pipeline(model: ModelFolder) -> Any:
    """The pipeline in float32 on the CPU, silent, from safetensors and known classes only."""
    import diffusers

    _check_components(model)
    check_denoiser(model)
    with _loading(model):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            model.root, use_safetensors=True, local_files_only=True
        )
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.float()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_denoiser(model: ModelFolder, expected: type[nn.Module]) -> nn.Module:
    """A folder's denoiser in float32, in eval mode; it must be of the class expected."""
    given = read_json(model.denoiser / "config.json").get("_class_name")
    if given != expected.__name__:
        raise ModelError(
            f"{model.name}: holds a {given}, expected a {expected.__name__} as in the dense model"
        )
    check_denoiser(model)
    with _loading(model):
        denoiser = expected.from_pretrained(  # type: ignore[attr-defined]
            model.denoiser, use_safetensors=True, local_files_only=True
        )
    return denoiser.float().eval()


def check_denoiser(model: ModelFolder) -> nn.Module:
    """Refuse what is not whole before diffusers sees it; returns the module tree, on meta."""
    Weights(model.denoiser)
    return skeleton(model.denoiser)


@contextmanager
def _loading(model: ModelFolder) -> Iterator[None]:
    """diffusers, silent for as long as the block runs; its refusals become ours."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # diffusers raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(f"{model.name}: diffusers cannot load it ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _check_components(model: ModelFolder) -> None:
    """Refuse a pipeline whose index names code outside diffusers and transformers."""
    import diffusers

    if not model.is_pipeline:
        raise ModelError(
            f"{model.name}: is a bare denoiser, and sampling needs its pipeline; pass the "
            "pipeline's folder, or a --calibration-set sampled before"
        )
    file = model.root / "model_index.json"
    for name, value in read_json(file).items():
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


def condition_argument(pipeline: Any) -> str:
    """The pipeline's argument for what to draw: `class_labels` or `prompt`."""
    parameters = inspect.signature(pipeline.__call__).parameters
    for argument in ("class_labels", "prompt"):
        if argument in parameters:
            return argument
    raise RecipeError(
        f"{type(pipeline).__name__} takes neither class_labels nor prompt; sample it yourself and "
        "use ditprune.calibrate(denoiser, batches)"
    )


def conditions(
    pipeline: Any, labels: Sequence[int] | None, prompts: Sequence[str] | None
) -> list[Any]:
    """What to draw: the given labels or prompts, or every label that the pipeline knows."""
    argument = condition_argument(pipeline)
    if argument == "class_labels":
        if prompts:
            raise RecipeError(
                f"{type(pipeline).__name__} draws class labels; pass --labels, not --prompts"
            )
        num_classes = pipeline.transformer.config.num_embeds_ada_norm
        known = sorted(pipeline.labels.values()) or list(range(num_classes))
        for label in labels or ():
            if not 0 <= label < num_classes:
                raise RecipeError(
                    f"--labels {label}: expected class ids from 0 to {num_classes - 1}"
                )
        return list(labels or known)
    if labels:
        raise RecipeError(f"{type(pipeline).__name__} draws prompts; pass --prompts, not --labels")
    if not prompts:
        raise RecipeError(f"{type(pipeline).__name__} needs --prompts FILE, one prompt a line")
    return list(prompts)


def draw(
    pipeline: Any,
    batch: Sequence[Any],
    seeds: Sequence[int],
    num_inference_steps: int | None,
    guidance_scale: float | None,
) -> Any:
    """Images [N, H, W, C] in [0, 1] as numpy, each item from the noise of its own seed."""
    options = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    return pipeline(
        **{condition_argument(pipeline): list(batch)},
        **{name: value for name, value in options.items() if value is not None},
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
