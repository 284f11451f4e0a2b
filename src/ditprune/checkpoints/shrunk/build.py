"""How does the denoiser that a class makes become a shrunk one? By a form and stored shapes.

Nothing here is trusted: a form may only lower numbers that are there, and a stored tensor may only
be smaller than the one that the class makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from ditprune.checkpoints.shrunk.form import Form, mark_
from ditprune.checkpoints.shrunk.low_rank import to_low_rank_
from ditprune.checkpoints.shrunk.resize import resize_
from ditprune.checkpoints.weights import Entry
from ditprune.errors import ModelError
from ditprune.targets.matrix import CONVOLUTIONS


def reshape_(denoiser: nn.Module, form: Form, shapes: Mapping[str, Sequence[int]]) -> None:
    """Make the denoiser that a class has made from its config a shrunk one, in place.

    Its config holds the form afterwards. Layers of lower rank are on the meta device.

    Args:
        shapes: of the stored tensors by name; a tensor that has none stays as it is.

    Raises ModelError where the form or a shape does not fit the class.
    """
    drop_blocks_(denoiser, form.blocks)
    to_low_rank_(denoiser, form.ranks)
    tensors: dict[str, Tensor] = dict(denoiser.named_parameters(remove_duplicate=False))
    tensors |= dict(denoiser.named_buffers(remove_duplicate=False))
    smaller = {
        name: _corner(name, tensor, shapes[name])
        for name, tensor in tensors.items()
        if name in shapes and tuple(shapes[name]) != tuple(tensor.shape)
    }
    resize_(denoiser, smaller, form.numbers)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in smaller):
        _check_bias(path, denoiser.get_submodule(path))
    mark_(denoiser, form)


def reshape_as_stored_(
    denoiser: nn.Module, form: Form, entries: Iterable[Entry], where: str
) -> None:
    """`reshape_` by the tensors of files. Raises ModelError with the place that is given."""
    try:
        reshape_(denoiser, form, {entry.name: entry.shape for entry in entries})
    except ModelError as error:
        raise ModelError(
            f"{where}: {error}; its config.json and its weights are not of one shrunk denoiser"
        ) from None


def drop_blocks_(denoiser: nn.Module, blocks: Mapping[str, Sequence[int]]) -> None:
    """Take blocks out of their lists, which are numbered from 0 again.

    Args:
        blocks: by the path of a list, the blocks that stay, ascending.

    Raises ModelError for what is no list, and for a block that it does not have.
    """
    for path, stay in blocks.items():
        items = _module(denoiser, path)
        if not isinstance(items, (nn.ModuleList, nn.Sequential)):
            raise ModelError(f"{path}: is a {type(items).__name__}, expected a list of blocks")
        if not stay or any(not 0 <= index < len(items) for index in stay):
            raise ModelError(
                f"{path}: blocks {list(stay)} stay, expected one or more of its {len(items)}"
            )
        blocks_that_stay = [items[index] for index in stay]
        del items[:]
        items.extend(blocks_that_stay)


def _corner(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of this shape; its values, where there are some, are replaced later.

    Raises ModelError for a shape that is larger.
    """
    is_smaller = len(shape) == tensor.ndim and all(
        0 < size <= most for size, most in zip(shape, tensor.shape, strict=True)
    )
    if not is_smaller:
        raise ModelError(f"{name}: has shape {list(shape)}, expected at most {list(tensor.shape)}")
    return tensor.detach()[tuple(map(slice, shape))].clone()


def _check_bias(path: str, layer: nn.Module) -> None:
    """Refuse a layer whose bias is not as long as its weight has rows. Raises ModelError."""
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)) or layer.bias is None:
        return
    if layer.weight.shape[0] != layer.bias.shape[0]:
        raise ModelError(
            f"{path}: its weight has {layer.weight.shape[0]} rows, its bias {layer.bias.shape[0]}"
        )


def _module(denoiser: nn.Module, path: str) -> nn.Module:
    try:
        return denoiser.get_submodule(path)
    except AttributeError:
        raise ModelError(f"{path}: {type(denoiser).__name__} has no such module") from None
