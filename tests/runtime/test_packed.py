"""pack ∘ unpack is the identity, and the format is as small as it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditprune.runtime.packed import pack, packed_bytes, unpack

pytestmark = pytest.mark.no_compiler


@given(
    num_rows=st.integers(1, 100),
    num_columns=st.integers(1, 200),
    sparsity=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_unpack_gives_the_bits_back(num_rows, num_columns, sparsity, dtype) -> None:
    weight = torch.randn(num_rows, num_columns).to(dtype)
    weight[torch.rand(weight.shape) < sparsity] = 0
    packed = pack(weight)
    restored = unpack(packed, num_rows, num_columns)
    assert restored.dtype == dtype
    assert torch.equal(restored, weight)
    assert len(packed.values) == weight.count_nonzero()
    assert sum(t.numel() * t.element_size() for t in packed) == packed_bytes(weight)


def test_the_order_is_that_of_groups_blocks_and_rows() -> None:
    weight = torch.zeros(33, 66)
    weight[0, 65], weight[1, 3], weight[1, 2], weight[32, 0] = 1, 2, 3, 4
    packed = pack(weight)
    assert packed.values.tolist() == [3, 2, 1, 4]
    assert packed.columns.tolist() == [2, 3, 1, 0]
    assert packed.starts.tolist() == [0, 2, 3, 4, 4]
    assert packed.counts.nonzero().tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_a_view_and_a_parameter_are_packed(same_bits) -> None:
    weight = torch.randn(50, 60)
    same_bits(unpack(pack(weight.T), 60, 50), weight.T)
    packed = pack(torch.nn.Parameter(weight))
    assert not any(tensor.requires_grad for tensor in packed)


def test_numbers_that_are_not_finite_stay_and_negative_zeros_go() -> None:
    weight = torch.tensor([[torch.nan, torch.inf, -0.0, 1e-45]])
    packed = pack(weight)
    assert len(packed.values) == 3
    torch.testing.assert_close(unpack(packed, 1, 4), weight, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.64), (torch.bfloat16, 0.78)])
def test_half_the_weights_take_less_than_the_dense_bytes(dtype, most) -> None:
    weight = torch.randn(1152, 1152).to(dtype)
    weight.view(-1)[::2] = 0
    assert packed_bytes(weight) < most * weight.numel() * weight.element_size()
