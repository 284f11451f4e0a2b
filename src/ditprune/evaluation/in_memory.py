"""How is a model in memory compared? It stays where it is, and nothing about it is changed.

A pipeline runs as a shallow copy with a scheduler of its own. So components are shared, and what a
run sets on a pipeline or a scheduler never reaches the caller's.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import DENOISER
from ditprune.checkpoints.locate import ModelFolder, names_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import evaluating
from ditprune.errors import ModelError, RecipeError
from ditprune.writing.files import installed_versions


@dataclass(frozen=True)
class ModelInMemory:
    """A pipeline in memory, or a denoiser alone.

    Args:
        name: for messages.
        denoisers: by component, in the order of a pipeline's folder.
        pipeline: None for a denoiser alone.
    """

    name: str
    denoisers: Mapping[str, nn.Module]
    pipeline: Any = None

    @property
    def placement(self) -> Placement:
        """Where it runs. Raises ModelError if its denoisers run in different places."""
        places = {name: place_of(denoiser) for name, denoiser in self.denoisers.items()}
        if len(set(places.values())) > 1:
            texts = ", ".join(f"{name} in {_text(place)}" for name, place in places.items())
            raise ModelError(f"{self.name}: has {texts}; expected one device and one dtype")
        return next(iter(places.values()))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that its images depend on, as plain values."""
        versions = installed_versions()
        pipeline = {} if self.pipeline is None else _pipeline_identity(self.pipeline)
        return {
            "denoisers": {name: digest(module) for name, module in self.denoisers.items()},
            "placement": _text(self.placement),
            "versions": {name: versions[name] for name in ("ditprune", "torch", "diffusers")},
            **pipeline,
        }


AnyModel = ModelFolder | ModelInMemory


def pipeline_in_memory(pipeline: Any, name: str) -> ModelInMemory:
    """A pipeline as a model to compare.

    Raises ModelError if it has no denoiser, or if its weights are not in memory.
    """
    modules = _modules(pipeline)
    for component, module in modules.items():
        _check_stays(module, f"{name}: its {component}")
    denoisers = {part: module for part, module in modules.items() if _is_denoiser(module)}
    if not denoisers:
        raise ModelError(
            f"{name}: {type(pipeline).__name__} has no denoiser of diffusers (components: "
            f"{', '.join(modules) or 'none'}); expected a pipeline with a transformer"
        )
    return ModelInMemory(name, denoisers, pipeline)


def denoiser_in_memory(denoiser: nn.Module, name: str, dense: AnyModel) -> ModelInMemory:
    """A denoiser alone, for the place of the dense model's only one. Raises ModelError."""
    if len(dense.denoisers) > 1:
        raise ModelError(
            f"{name}: is one module, and the dense model has {', '.join(dense.denoisers)}; pass "
            "the pipeline that holds them"
        )
    _check_stays(denoiser, name)
    return ModelInMemory(name, {next(iter(dense.denoisers), DENOISER): denoiser})


def check_against(model: AnyModel, dense: AnyModel, placement: Placement) -> None:
    """Refuse a model in memory that cannot be compared with the dense one as it is.

    Args:
        placement: where the dense model runs.

    Raises ModelError or RecipeError.
    """
    if not isinstance(model, ModelInMemory):
        return
    device = _device_name(torch.device(placement.device))
    if model.placement != Placement(device, placement.dtype):
        raise RecipeError(
            f"{model.name}: is in {_text(model.placement)}, the dense model in {_text(placement)}; "
            "move one with .to(…), so that both compute alike"
        )
    if not isinstance(dense, ModelInMemory):
        return
    pairs = [(dense.denoisers.get(name), module) for name, module in model.denoisers.items()]
    if all(mine is theirs for theirs, mine in pairs):
        raise RecipeError(
            f"{model.name}: is the dense model's own denoiser, so there is nothing to compare; "
            "copy.deepcopy it before pruning, or pass the dense model's folder"
        )
    if model.pipeline is not None:
        _check_draws_alike(model, dense)


def _check_draws_alike(model: ModelInMemory, dense: ModelInMemory) -> None:
    """Refuse another class of pipeline or another scheduler, which would not be used."""
    mine, theirs = model.pipeline, dense.pipeline
    pairs = {
        "pipeline": (_class_name(mine), _class_name(theirs)),
        "scheduler": (_scheduler_identity(mine), _scheduler_identity(theirs)),
    }
    for part, (given, expected) in pairs.items():
        if given != expected:
            raise RecipeError(
                f"{model.name}: its {part} is not the dense model's (another class or another "
                "config); only denoisers are compared, so give both the same"
            )


@contextmanager
def borrowed(models: Sequence[ModelInMemory]) -> Iterator[None]:
    """Eval mode and no gradients inside the block; each module gets its own mode back after it."""
    with ExitStack() as stack:
        for model in models:
            for module in (*model.denoisers.values(), *_modules(model.pipeline).values()):
                stack.enter_context(evaluating(module))
        yield


def copy_of(pipeline: Any) -> Any:
    """A silent pipeline with the same components, but a scheduler of its own."""
    copied = copy.copy(pipeline)
    copied.scheduler = copy.deepcopy(pipeline.scheduler)
    copied.set_progress_bar_config(disable=True)
    return copied


def place_of(denoiser: nn.Module) -> Placement:
    """The device and the dtype of a denoiser's weights."""
    first = next(iter(denoiser.parameters()))
    dtype = getattr(denoiser, "dtype", first.dtype)
    return Placement(_device_name(first.device), dtype)


def digest(module: nn.Module) -> str:
    """A hash of a module's tensors, and of the classes and plain settings of all its parts."""
    sha = hashlib.sha256()
    for name, part in module.named_modules():
        sha.update(json.dumps([name, _class_name(part), _settings(part)]).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(_bytes(tensor))
    return sha.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _pipeline_identity(pipeline: Any) -> dict[str, Any]:
    """Its class, its options, its scheduler, and hashes of its modules."""
    options = {k: v for k, v in pipeline.config.items() if not isinstance(v, (list, tuple))}
    return {
        "pipeline": [_class_name(pipeline), _plain(options)],
        "scheduler": _scheduler_identity(pipeline),
        "modules": {name: digest(module) for name, module in _modules(pipeline).items()},
    }


def _scheduler_identity(pipeline: Any) -> list[Any]:
    """Its class and its config, without what diffusers notes beside it under names with `_`."""
    config = getattr(pipeline.scheduler, "config", {})
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    return [_class_name(pipeline.scheduler), _plain(options)]


def _settings(part: nn.Module) -> dict[str, Any]:
    """The plain attributes of one part, such as a switch or a scale; others by their class."""
    return {
        name: _plain(value)
        for name, value in sorted(vars(part).items())
        if name not in ("training", "_parameters", "_buffers", "_modules")
    }


def _plain(value: Any) -> Any:
    """The value if JSON can say it; another one by its class. A hook's number says nothing."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        items = {k: v for k, v in value.items() if k != "_name_or_path"}  # where it was loaded
        numbered = all(isinstance(key, int) for key in items)
        return [_plain(v) for v in items.values()] if numbered else {
            str(k): _plain(v) for k, v in items.items()
        }  # fmt: skip
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else _class_name(value)


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _check_stays(module: nn.Module, where: str) -> None:
    """Refuse a module whose weights are moved by hooks, or are not there. Raises ModelError."""
    has_hooks = any(
        hasattr(part, "_hf_hook")
        or any("offload" in key for key in getattr(vars(part).get("_diffusers_hook"), "hooks", ()))
        for part in module.modules()
    )
    is_away = any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    if has_hooks or is_away:
        raise ModelError(
            f"{where} is offloaded, so its weights are not in one place; call "
            "pipeline.remove_all_hooks() and pipeline.to(device), or pass the model's folder "
            "with max_memory"
        )


def _is_denoiser(module: nn.Module) -> bool:
    """By the nearest class of diffusers, since a model may be a class of its own over one."""
    classes = [base for base in type(module).__mro__ if base.__module__.startswith("diffusers.")]
    return bool(classes) and names_denoiser(classes[0].__name__)


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    """The modules of a pipeline by component, in the order of its model_index.json."""
    components = {} if pipeline is None else pipeline.components
    return {name: part for name, part in sorted(components.items()) if isinstance(part, nn.Module)}


def _device_name(device: torch.device) -> str:
    """`cpu`, `cuda:1`; the first GPU is `cuda`."""
    return device.type if not device.index else str(device)


def _text(placement: Placement) -> str:
    return f"{str(placement.dtype).removeprefix('torch.')} on {placement.device}"
