"""Which module does the work inside a wrapper, and which layer lies under an adapter?"""

from __future__ import annotations

from torch import nn

# Modules that only pass their calls on, by class name, and the child that they pass them to.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
_BASE = "base_layer"  # PEFT's name of the layer that an adapter wraps


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DataParallel or PeftModel, with the names it had before.

    It has the same parameters, so that pruning it prunes the wrapper too.
    """
    while True:
        classes = {part.__name__ for part in type(model).__mro__}
        if "PeftModel" in classes:
            model = model.get_base_model()  # type: ignore[operator]
            continue
        child = next((model._modules.get(_WRAPPERS[n]) for n in classes & _WRAPPERS.keys()), None)
        if child is None:
            return model
        model = child


def is_lora(layer: nn.Module) -> bool:
    """Whether a layer is another one with LoRAs beside it, as PEFT and diffusers attach them."""
    has_base = layer._modules.get(_BASE) is not None
    return has_base and any(name.startswith("lora_") for name in layer._modules)


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer is another one under an adapter of any kind, LoRAs included."""
    return layer._modules.get(_BASE) is not None or "modules_to_save" in layer._modules


def inner_layer(layer: nn.Module) -> nn.Module:
    """The layer under LoRAs, which is pruned; the layer itself where there are none."""
    while is_lora(layer):
        layer = layer.get_submodule(_BASE)
    return layer


def without_base(path: str) -> str:
    """The path of a layer without the part that attaching an adapter adds."""
    return path.removesuffix(f".{_BASE}")


def adapter_parts(layer: nn.Module) -> list[str]:
    """The names of the children of a layer with LoRAs that are the LoRAs'."""
    return [name for name in layer._modules if name != _BASE] if is_lora(layer) else []
