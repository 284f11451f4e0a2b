"""How does a module, or one of its blocks, lose units in place?"""

from __future__ import annotations

from torch import Tensor, nn

from ditprune.checkpoints.shrunk.resize import number_of, resize_
from ditprune.shrinking.units import Cut
from ditprune.targets.lists import join


def cut_(module: nn.Module, cut: Cut, prefix: str = "") -> None:
    """Take the units out of a module that do not stay.

    Args:
        prefix: the path of the module in its denoiser; what lies elsewhere is left out.
    """
    tensors: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
    tensors.update(module.named_parameters(remove_duplicate=False))
    smaller = {
        name: cut.tensor(join(prefix, name), tensor)
        for name, tensor in tensors.items()
        if join(prefix, name) in cut.tensors
    }
    numbers: dict[str, dict[str, int]] = {}
    for (path, name), less in cut.numbers().items():
        inside = _inside(path, prefix)
        if inside is not None:
            value = number_of(module.get_submodule(inside), name) or 0
            numbers.setdefault(inside, {})[name] = value - less
    resize_(module, smaller, numbers)


def _inside(path: str, prefix: str) -> str | None:
    """The path below a module; None for what lies elsewhere."""
    if not prefix:
        return path
    return path[len(prefix) + 1 :] if f"{path}.".startswith(f"{prefix}.") else None
