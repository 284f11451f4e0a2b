"""A target's weight as [C_out, C_in], and what enters it with channels last."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ditprune.targets.matrix import as_matrix, channels_last, matrix_shape

LAYERS = [
    nn.Linear(6, 4),
    nn.Conv1d(6, 4, 1),
    nn.Conv2d(6, 4, 1),
    nn.Conv2d(6, 4, 1).to(memory_format=torch.channels_last),
    nn.Conv3d(6, 4, 1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_writing_into_the_matrix_writes_into_the_weight(layer) -> None:
    matrix = as_matrix(layer.weight.detach())
    assert matrix.shape == (4, 6)
    matrix[1, 2] = 7
    assert layer.weight[1, 2].item() == 7


@pytest.mark.parametrize("is_batched", [True, False])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_the_matrix_times_what_enters_is_what_the_layer_gives(layer, is_batched: bool) -> None:
    num_axes = layer.weight.ndim - 2
    shape = [5, 6, 3, 4, 2][: 2 + num_axes]
    inputs = torch.randn(shape[0 if is_batched else 1 :])
    if isinstance(layer, nn.Linear):
        inputs = torch.randn(5, 3, 6) if is_batched else torch.randn(6)
    given = channels_last(layer, inputs) @ as_matrix(layer.weight).T + layer.bias
    torch.testing.assert_close(given, channels_last(layer, layer(inputs)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (), (4, 6, 3), (4, 1, 3, 3)])
def test_what_is_no_matrix_is_refused(shape) -> None:
    with pytest.raises(ValueError, match="expected"):
        matrix_shape(shape)
