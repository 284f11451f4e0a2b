"""A SparseLinear behaves as the Linear it stands for, in everything that modules do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from ditprune.errors import KernelError
from ditprune.runtime.sparse_linear import SparseLinear


def half_zero(in_features: int = 70, out_features: int = 40, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, bias=bias)
    with torch.no_grad():
        linear.weight[torch.rand(out_features, in_features) < 0.5] = 0
    return linear


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.no_compiler
@pytest.mark.parametrize("bias", [True, False])
def test_the_state_dict_is_the_linears(bias: bool, same_bits) -> None:
    linear = half_zero(bias=bias)
    sparse = SparseLinear(linear)
    dense_state, sparse_state = linear.state_dict(), sparse.state_dict()
    assert list(dense_state) == list(sparse_state)
    for name, tensor in dense_state.items():
        same_bits(sparse_state[name], tensor)


def test_a_state_dict_is_loaded_strictly_inside_a_model(same_bits) -> None:
    other = nn.Sequential(nn.Linear(70, 40), nn.GELU(), half_zero(40, 8))
    model = nn.Sequential(SparseLinear(half_zero()), nn.GELU(), SparseLinear(half_zero(40, 8)))
    model.load_state_dict(other.state_dict())
    for name, tensor in other.state_dict().items():
        same_bits(model.state_dict()[name], tensor)
    inputs = torch.randn(5, 70)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), other(inputs))


@pytest.mark.no_compiler
def test_what_is_wrong_with_a_state_dict_is_said() -> None:
    model = nn.Sequential(SparseLinear(half_zero()))
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        model.load_state_dict({"0.bias": state["0.bias"]})
    assert model.load_state_dict({"0.bias": state["0.bias"]}, strict=False).missing_keys == [
        "0.weight"
    ]
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.extra"):
        model.load_state_dict({**state, "0.extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight: got \[40, 71\]"):
        model.load_state_dict({**state, "0.weight": torch.zeros(40, 71)})


@pytest.mark.no_compiler
@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_comes_back(bias: bool, same_bits) -> None:
    linear = half_zero(bias=bias).eval()
    linear.weight.requires_grad_(False)
    restored = SparseLinear(linear).to_linear()
    same_bits(restored.weight, linear.weight)
    assert restored.bias is linear.bias
    assert not restored.weight.requires_grad
    assert not restored.training
    assert (restored.in_features, restored.out_features) == (70, 40)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_the_same_and_its_own(copied) -> None:
    sparse = SparseLinear(half_zero())
    other = copied(sparse)
    inputs = torch.randn(5, 70)
    with torch.no_grad():
        before = sparse(inputs)
        torch.testing.assert_close(other(inputs), before, rtol=0, atol=0)
        other.values.zero_()
        torch.testing.assert_close(sparse(inputs), before, rtol=0, atol=0)


def test_dtypes_follow_to(same_bits) -> None:
    linear = half_zero()
    sparse = SparseLinear(linear).to(torch.bfloat16)
    same_bits(sparse.weight, linear.weight.bfloat16())
    assert sparse.bias.dtype == torch.bfloat16
    inputs = torch.randn(5, 70).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(sparse(inputs), linear.bfloat16()(inputs), rtol=0.02, atol=0.01)
        with pytest.raises(KernelError, match=r"weight are torch\.float16"):
            sparse.half()(inputs)


@pytest.mark.no_compiler
def test_the_dtype_of_a_loaded_state_dict_is_the_modules() -> None:
    sparse = SparseLinear(half_zero()).to(torch.bfloat16)
    sparse.load_state_dict(half_zero().state_dict())
    assert sparse.values.dtype == sparse.bias.dtype == torch.bfloat16


@pytest.mark.no_compiler
def test_another_device_is_refused_and_the_way_back_works() -> None:
    sparse = SparseLinear(half_zero())
    with torch.no_grad(), pytest.raises(KernelError, match="call desparsify_ before moving"):
        copy.deepcopy(sparse).to("meta")(torch.randn(2, 70, device="meta"))
    assert copy.deepcopy(sparse).to("meta").to_linear().weight.shape == (40, 70)


@pytest.mark.no_compiler
@pytest.mark.parametrize("width", [65, 80, 128])
def test_inputs_of_another_width_are_refused(width: int) -> None:
    """Also where they would fill as many blocks of columns as the right ones."""
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(KernelError, match=f"{width} channels, e"):
            SparseLinear(half_zero())(torch.randn(3, width))


@pytest.mark.parametrize("leading", [(2, 5), (1,), ()])
def test_gradients_are_those_of_the_linear(leading: tuple[int, ...]) -> None:
    linear = half_zero()
    sparse = SparseLinear(copy.deepcopy(linear))
    inputs = torch.randn(*leading, 70)
    gradients = []
    for layer in (linear, sparse):
        own = inputs.clone().requires_grad_()
        layer(own).square().sum().backward()
        gradients.append((own.grad, layer.bias.grad))
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_autocast_casts_as_for_a_linear() -> None:
    linear = half_zero()
    sparse = SparseLinear(linear)
    inputs = torch.randn(5, 70)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, dense = sparse(inputs), linear(inputs)
    assert ours.dtype == dense.dtype == torch.bfloat16
    torch.testing.assert_close(ours, dense, rtol=0.02, atol=0.01)


def test_it_runs_in_a_compiled_model() -> None:
    sparse = nn.Sequential(SparseLinear(half_zero()), nn.GELU()).eval()
    inputs = torch.randn(5, 70)
    with torch.no_grad():
        compiled = torch.compile(sparse, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(inputs), sparse(inputs))


def test_inference_mode_and_half_the_memory() -> None:
    linear = half_zero(640, 640)
    sparse = SparseLinear(linear)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(torch.ones(3, 640)), linear(torch.ones(3, 640)))
    assert sparse.size_bytes < 0.65 * 4 * 640 * 640
    assert "in_features=640, out_features=640, bias=True, sparsity=0.5" in repr(sparse)
    assert not isinstance(sparse, nn.Linear)
