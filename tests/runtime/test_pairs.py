"""bfloat16 weights in pairs: as exact as one by one, as safe, and chosen where they gain."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ditprune.errors import KernelError
from ditprune.runtime import SparseLinear, build, desparsify_, sparsify_, swap
from ditprune.runtime.backends import OwnKernel
from ditprune.runtime.kernel_call import multiply
from ditprune.runtime.packed import pack, packed_bytes, unpack
from sparse_products import assert_is_dense, draw

needs_pairs = pytest.mark.skipif(
    not build.machine_takes_pairs(),
    reason="no instruction that multiplies pairs of bfloat16",
)


def draw_bf16(num_tokens: int, num_rows: int, num_columns: int, sparsity: float, seed: int = 0):
    return [one.bfloat16() for one in draw(num_tokens, num_rows, num_columns, sparsity, seed)]


@pytest.mark.no_compiler
@given(
    num_rows=st.integers(1, 100), num_pairs=st.integers(1, 150), sparsity=st.floats(0, 1)
)  # fmt: skip
def test_unpack_gives_the_bits_back(num_rows, num_pairs, sparsity) -> None:
    _, weight, _ = draw_bf16(1, num_rows, 2 * num_pairs, sparsity)
    packed = pack(weight, in_pairs=True)
    assert torch.equal(unpack(packed, num_rows, 2 * num_pairs), weight)
    assert len(packed.values) == weight.unflatten(1, (-1, 2)).any(2).sum()
    taken = sum(tensor.numel() * tensor.element_size() for tensor in packed)
    assert taken == packed_bytes(weight, in_pairs=True)


@pytest.mark.no_compiler
def test_negative_zeros_and_views_are_packed() -> None:
    weight = torch.tensor([[-0.0, 0.0, 1.0, -0.0], [0.0, -0.0, 0.0, torch.inf]]).bfloat16()
    assert len(pack(weight, in_pairs=True).values) == 2
    assert torch.equal(unpack(pack(weight.T, in_pairs=True), 4, 2), weight.T)


SHAPES = [  # tokens, rows, columns
    (1, 1, 2), (2, 40, 70), (16, 33, 128), (17, 33, 130), (128, 64, 256), (129, 257, 254),
    (300, 70, 1152), (5, 513, 62),
]  # fmt: skip


@needs_pairs
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_dense_product(shape: tuple[int, int, int]) -> None:
    for sparsity in (0.0, 0.5, 0.9, 1.0):
        inputs, weight, bias = draw_bf16(*shape, sparsity)
        for bias_as in (None, bias, bias.float()):
            outputs = multiply(inputs, pack(weight, in_pairs=True), len(weight), bias_as)
            assert_is_dense(outputs, inputs, weight, bias_as)


@needs_pairs
@settings(max_examples=60)
@given(
    num_tokens=st.integers(1, 280), num_rows=st.integers(1, 140), num_pairs=st.integers(1, 150),
    sparsity=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(num_tokens, num_rows, num_pairs, sparsity, seed) -> None:
    inputs, weight, bias = draw_bf16(num_tokens, num_rows, 2 * num_pairs, sparsity, seed)
    packed = pack(weight, in_pairs=True)
    assert_is_dense(multiply(inputs, packed, num_rows, bias), inputs, weight, bias)


@needs_pairs
def test_inputs_that_do_not_lie_in_pairs() -> None:
    inputs, weight, bias = draw_bf16(40, 50, 90, 0.5)
    views = {
        "odd stride": torch.cat([inputs, inputs[:, :1]], 1)[:, :90],
        "odd start": torch.cat([inputs[:, :1], inputs, inputs[:, :1]], 1)[:, 1:91],
        "transposed": inputs.T.contiguous().T,
        "expanded": inputs[:1].expand(40, 90),
    }
    for name, view in views.items():
        got = multiply(view, pack(weight, in_pairs=True), 50, bias)
        assert torch.equal(got, multiply(view.contiguous(), pack(weight, in_pairs=True), 50, bias))
        assert_is_dense(got, view, weight, bias)
        assert view.shape == (40, 90), name


@needs_pairs
@pytest.mark.parametrize("num_tokens", [1, 128])
def test_hostile_columns_counts_and_starts(num_tokens: int) -> None:
    inputs, weight, _ = draw_bf16(num_tokens, 40, 128, 0.5)
    packed = pack(weight, in_pairs=True)
    outside = packed._replace(columns=packed.columns | 192)
    assert multiply(inputs, outside, 40).isfinite().all()
    for name, changed in (("counts", packed.counts + 1), ("starts", packed.starts + 1)):
        with pytest.raises(KernelError, match="not what `pack` writes"):
            multiply(inputs, packed._replace(**{name: changed}), 40)


@pytest.mark.no_compiler
def test_other_inputs_are_refused() -> None:
    inputs, weight, _ = draw_bf16(5, 40, 128, 0.5)
    packed = pack(weight, in_pairs=True)
    with pytest.raises(KernelError, match=r"inputs are torch\.float32 on cpu, expected bfloat16"):
        multiply(inputs.float(), packed, 40)
    with pytest.raises(KernelError, match="127 inputs are no pairs"):
        multiply(inputs[:, :127], packed, 40)


def test_a_machine_without_the_instruction_says_so() -> None:
    inputs, weight, _ = draw_bf16(5, 40, 128, 0.5)
    with pytest.raises(KernelError, match="no instruction for pairs"):
        multiply(inputs, pack(weight, in_pairs=True), 40, None, "plain")


def half_zero(num_in: int = 130, num_out: int = 40) -> nn.Linear:
    linear = nn.Linear(num_in, num_out)
    with torch.no_grad():
        linear.weight[torch.rand(linear.weight.shape) < 0.7] = 0
    return linear.bfloat16()


@needs_pairs
def test_a_layer_in_pairs_behaves_as_its_linear(same_bits) -> None:
    linear = half_zero()
    sparse = SparseLinear(linear, in_pairs=True)
    inputs = torch.randn(20, 130).bfloat16()
    assert sparse.values.dtype == torch.int32
    same_bits(sparse.state_dict()["weight"], linear.weight)
    same_bits(sparse.to_linear().weight, linear.weight)
    assert f"sparsity={1 - int(linear.weight.count_nonzero()) / 5200:.3f}" in repr(sparse)
    own = inputs.clone().requires_grad_()
    sparse(own).sum().backward()
    assert own.grad.dtype == torch.bfloat16
    with torch.no_grad():
        expected = sparse(inputs)
        torch.testing.assert_close(expected, linear(inputs), rtol=0.02, atol=0.01)
        for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
            assert torch.equal(other(inputs), expected)
        other.load_state_dict({name: 2 * value for name, value in linear.state_dict().items()})
        assert other.values.dtype == torch.int32
        torch.testing.assert_close(other(inputs), 2 * expected, rtol=0.02, atol=0.01)


@needs_pairs
def test_another_dtype_is_held_one_by_one() -> None:
    linear = half_zero()
    sparse = SparseLinear(linear, in_pairs=True).float()
    assert sparse.values.dtype == sparse.bias.dtype == torch.float32
    inputs = torch.randn(20, 130)
    with torch.no_grad():
        torch.testing.assert_close(sparse(inputs), linear.float()(inputs))


@pytest.mark.no_compiler
def test_a_weight_that_has_no_pairs_is_held_one_by_one() -> None:
    assert SparseLinear(half_zero(129), in_pairs=True).values.dtype == torch.bfloat16
    assert SparseLinear(half_zero().float(), in_pairs=True).values.dtype == torch.float32


@needs_pairs
def test_pairs_are_for_many_tokens_and_zeros_enough(monkeypatch) -> None:
    backend = OwnKernel()

    def is_paired(linear: nn.Linear, *counts: int) -> bool:
        return backend.sparse(linear, counts).values.dtype == torch.int32

    assert is_paired(half_zero(), 512)
    assert is_paired(half_zero(), 2, 512)
    assert not is_paired(half_zero(), 2, 8)
    assert not is_paired(half_zero().float(), 512)
    full = half_zero()
    nn.init.normal_(full.weight)
    assert not is_paired(full, 512)
    monkeypatch.setattr(build, "machine_takes_pairs", lambda: False)
    assert not is_paired(half_zero(), 512)


@needs_pairs
def test_a_denoiser_in_bfloat16_runs_in_pairs_and_comes_back(
    tiny_dit, batches, monkeypatch, same_bits
) -> None:
    import ditprune

    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)
    denoiser = tiny_dit()
    ditprune.prune_(denoiser, saliency="magnitude", granularity="channel", sparsity=0.7)
    denoiser = denoiser.bfloat16()
    call = batches(denoiser, 1)[0]
    call = {k: v.bfloat16() if v.is_floating_point() else v for k, v in call.items()}
    state = copy.deepcopy(denoiser.state_dict())
    with torch.no_grad():
        dense = denoiser(**call).sample
        sparsify_(denoiser, call)
        forms = {m.values.dtype for m in denoiser.modules() if isinstance(m, SparseLinear)}
        assert forms == {torch.int32, torch.bfloat16}  # attention and MLP; modulation
        torch.testing.assert_close(denoiser(**call).sample, dense, rtol=0.1, atol=0.05)
    assert len(desparsify_(denoiser)) == 21
    for name, tensor in denoiser.state_dict().items():
        same_bits(tensor, state[name])
