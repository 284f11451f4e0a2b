"""Which layers apply one matrix at every position, and how is their weight seen as that matrix?

A convolution with kernel size 1 is such a layer: its weight [C_out, C_in, 1, …] is the matrix, and
its input has the channels before the positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ditprune.targets.wrapped import inner_layer

# What PyTorch calls a convolution; only the forward ones can be pointwise.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def kind_of(layer: nn.Module) -> str | None:
    """`linear`, `convolution` (pointwise), or None for another layer; LoRAs on it do not count.

    None also for a layer whose weight is packed or computed (quantised, parametrised).
    """
    layer = inner_layer(layer)
    shape = expected_shape(layer)
    if shape is None:
        return None
    weight = layer._parameters.get("weight")
    if weight is None or not weight.is_floating_point():
        return None
    # Groups show in the shape: [C_out, C_in / groups, …].
    is_matrix = tuple(weight.shape[:2]) == shape
    return ("linear" if isinstance(layer, nn.Linear) else "convolution") if is_matrix else None


def expected_shape(layer: nn.Module) -> tuple[int, int] | None:
    """(C_out, C_in) of a Linear or a pointwise convolution, as it says; None for another layer.

    The outputs of a subclass of Linear are as many as its weight has rows, whatever it says: some
    say how many are left after a gate.
    """
    if isinstance(layer, nn.Linear):
        weight = layer._parameters.get("weight")
        is_plain = type(layer) is nn.Linear or weight is None or weight.ndim != 2
        num_out = layer.out_features if is_plain or weight is None else len(weight)
        return num_out, layer.in_features
    if isinstance(layer, CONVOLUTIONS) and _is_pointwise(layer):
        return layer.out_channels, layer.in_channels
    return None


def _is_pointwise(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    """Whether it reads each position once and adds no padding."""
    is_single = all(size == 1 for size in (*layer.kernel_size, *layer.stride))
    is_padded = not isinstance(layer.padding, str) and any(layer.padding)
    return is_single and not is_padded


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(C_out, C_in) of a weight of this shape.

    Raises ValueError unless the shape is [C_out, C_in] or [C_out, C_in, 1, …].
    """
    if len(shape) < 2 or any(size != 1 for size in shape[2:]):
        raise ValueError(f"shape {list(shape)}: expected [C_out, C_in], or ones after it")
    return shape[0], shape[1]


def as_matrix(weight: Tensor) -> Tensor:
    """The weight of a target as [C_out, C_in]: a view, so that changing it changes the weight."""
    return weight.view(matrix_shape(weight.shape))


def channels_last(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The input of a target as [*positions, C_in]."""
    layer = inner_layer(layer)
    if isinstance(layer, CONVOLUTIONS):
        return inputs.movedim(-1 - len(layer.kernel_size), -1)
    return inputs
