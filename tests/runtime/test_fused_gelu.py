"""GELU in the kernel: the same function as torch's, and only where nobody looks in between."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.models.activations import GELU
from torch import Tensor, nn

from ditprune.runtime import SparseLinear, desparsify_, fused_gelu, sparse_linear, sparsify_, swap
from ditprune.runtime.fused_gelu import FusedGELU, fuse_
from ditprune.runtime.kernel_call import multiply
from ditprune.runtime.packed import pack
from sparse_products import ROUNDING, SETS, draw


def gelu_64(sums: Tensor) -> Tensor:
    return F.gelu(sums.double(), approximate="tanh")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 9, 20, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_gelu_of_the_product(name: str, num_tokens: int, dtype) -> None:
    inputs, weight, bias = draw(num_tokens, 70, 90, 0.7)
    inputs, weight = inputs.to(dtype), weight.to(dtype)
    expected = gelu_64(inputs.double() @ weight.double().T + bias.double())
    outputs = multiply(inputs, pack(weight), 70, bias, name, gelu=True)
    assert outputs.dtype == dtype
    error = (outputs.double() - expected).abs()
    assert (error <= ROUNDING[dtype] * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("num_tokens", [1, 20])
def test_every_size_of_sum(name: str, num_tokens: int) -> None:
    """To three units of the last place of what goes in; torch's own is to two."""
    sizes = torch.logspace(-38, 38, 500)
    values = torch.cat([torch.linspace(-12, 12, 1001), sizes, -sizes, torch.zeros(1)])
    outputs = multiply(
        torch.ones(num_tokens, 1), pack(values[:, None]), len(values), None, name, gelu=True
    )
    assert ((outputs.double() - gelu_64(values)).abs() <= 3 * 2**-24 * values.abs()).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("num_tokens", [1, 20])
def test_nan_and_infinity_are_not_hidden(name: str, num_tokens: int) -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    outputs = multiply(torch.ones(num_tokens, 1), pack(values[:, None]), 4, None, name, gelu=True)
    assert outputs[:, 0].isnan().all()
    assert (outputs[:, 1] == torch.inf).all()
    assert outputs[:, 2].isnan().all()  # as torch has it
    torch.testing.assert_close(outputs[:, 3], F.gelu(torch.ones(num_tokens), approximate="tanh"))


def feed_forward(approximate: str = "tanh") -> nn.Sequential:
    """Tokens of 64 in and out, half of the weights zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(GELU(64, 96, approximate=approximate), nn.Linear(96, 64))
        for linear in (model[0].proj, model[1]):
            linear.weight.data[torch.rand(linear.weight.shape) < 0.5] = 0
    return model.eval()


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)
    model = feed_forward()
    sparsify_(model)
    return model


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each product from now on, whether the kernel applied GELU."""
    seen: list[bool] = []

    def noted(*args, gelu: bool = False, **more) -> Tensor:
        seen.append(gelu)
        return multiply(*args, gelu=gelu, **more)

    monkeypatch.setattr(sparse_linear, "multiply", noted)
    return seen


INPUTS = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1))


def test_there_and_back(fused, products) -> None:
    dense, module = feed_forward(), fused[0]
    assert type(module) is FusedGELU
    assert list(fused.state_dict()) == list(dense.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fused(INPUTS), dense(INPUTS), rtol=1e-4, atol=1e-5)
    assert products == [True, False]
    desparsify_(fused)
    assert fused[0] is module
    assert type(module) is GELU
    with torch.no_grad():
        torch.testing.assert_close(fused(INPUTS), dense(INPUTS), rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_fused_too(copied, fused, products) -> None:
    other = copied(fused)
    with torch.no_grad():
        torch.testing.assert_close(other(INPUTS), fused(INPUTS), rtol=0, atol=0)
    assert products == [True, False] * 2


def test_only_gelu_by_tanh_behind_a_sparse_layer_is_fused(monkeypatch) -> None:
    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)
    exact, dense = feed_forward("none"), feed_forward()
    sparsify_(exact)
    fuse_(dense)
    assert type(exact[0]) is type(dense[0]) is GELU
    assert isinstance(exact[0].proj, SparseLinear)


def seen_by(layer: nn.Module, how: str, found: list[Tensor]):
    """Something that looks at the outputs of a layer, or changes them; how to end it."""
    if how == "hook":
        return layer.register_forward_hook(lambda _m, _i, out: found.append(out.clone())).remove
    if how == "hook of all modules":
        return nn.modules.module.register_module_forward_hook(
            lambda m, _i, out: found.append(out.clone()) if m is layer else None
        ).remove
    if how == "forward of its own":  # as accelerate does
        before = layer.forward
        layer.forward = lambda x: found.append(before(x)) or found[-1].clone()
        return lambda: delattr(layer, "forward")
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["hook", "hook of all modules", "forward of its own"])
def test_who_looks_at_the_layer_sees_its_own_outputs(how, fused, products) -> None:
    dense, found = feed_forward(), []
    with torch.no_grad():
        between = dense[0].proj(INPUTS)
        end = seen_by(fused[0].proj, how, found)
        try:
            torch.testing.assert_close(fused(INPUTS), dense(INPUTS), rtol=1e-4, atol=1e-5)
        finally:
            end()
        assert products == [False, False]
        torch.testing.assert_close(found[0], between, rtol=1e-4, atol=1e-5)
        fused(INPUTS)
    assert products[2:] == [True, False]


def test_a_forward_that_was_kept_outlives_the_way_back(fused) -> None:
    """As accelerate keeps it, whose hooks leave it behind when they are removed."""
    add_hook_to_module(fused[0], ModelHook())
    remove_hook_from_module(fused[0])
    dense = feed_forward()
    for undo in (lambda: None, lambda: desparsify_(fused)):
        undo()
        with torch.no_grad():
            torch.testing.assert_close(fused(INPUTS), dense(INPUTS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("approximate", "none"), ("gelu", torch.relu)])
def test_another_activation_set_later_is_run(name, value, fused, products) -> None:
    dense = feed_forward()
    for model in (dense, fused):
        setattr(model[0], name, value)
    with torch.no_grad():
        torch.testing.assert_close(fused(INPUTS), dense(INPUTS), rtol=1e-4, atol=1e-5)
    assert not any(products)


def test_a_layer_put_in_place_of_the_sparse_one_is_run(fused, products) -> None:
    """As LoRA does, which wraps a layer."""
    dense = feed_forward()
    fused[0].proj = nn.Sequential(fused[0].proj)
    with torch.no_grad():
        torch.testing.assert_close(fused(INPUTS), dense(INPUTS), rtol=1e-4, atol=1e-5)
    assert products == [False, False]


def test_gradients_are_the_dense_ones(fused, products) -> None:
    dense, gradients = feed_forward(), []
    for model in (dense, fused):
        inputs = INPUTS.clone().requires_grad_()
        model(inputs).sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert not any(products)


def test_it_runs_in_a_compiled_model(fused, products) -> None:
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(INPUTS), feed_forward()(INPUTS), rtol=1e-4, atol=1e-5)
    assert not any(products)


def test_autocast_is_followed(fused, products) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = fused[0](INPUTS)
    assert out.dtype == torch.bfloat16
    assert products == [True]
    torch.testing.assert_close(
        out.float(), feed_forward()[0](INPUTS).detach(), rtol=0.03, atol=0.03
    )


def test_a_module_of_a_subclass_is_left_alone() -> None:
    class Own(GELU):
        pass

    model = nn.Sequential(Own(64, 96, approximate="tanh"))
    model[0].proj = SparseLinear(model[0].proj)
    fused_gelu.fuse_(model)
    assert type(model[0]) is Own
