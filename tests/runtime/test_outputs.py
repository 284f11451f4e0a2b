"""Memory of large outputs: used again when nothing sees it any more, and never before."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ditprune.runtime import desparsify_, outputs
from ditprune.runtime.multiply import multiply
from ditprune.runtime.packed import pack
from ditprune.runtime.sparse_linear import SparseLinear
from sparse_products import assert_is_dense, draw

SHAPE = (300, 40)


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(outputs, "LARGE_BYTES", 1)
    outputs.release()
    yield
    outputs.release()


def place_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.no_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_used_again_for_the_same_size_only(dtype) -> None:
    first = outputs.empty(SHAPE, dtype)
    assert (first.shape, first.dtype, first.is_contiguous()) == (SHAPE, dtype, True)
    place = place_of(first)
    del first
    other = outputs.empty((301, 40), dtype)
    assert place_of(other) != place
    again = outputs.empty(SHAPE[::-1], dtype)
    assert place_of(again) == place
    assert place_of(outputs.empty(SHAPE, dtype)) != place


SEEN: dict[str, Callable[[Tensor], object]] = {
    "view": lambda out: out[3:, 1],
    "reshaped": lambda out: out.reshape(-1),
    "detached": lambda out: out.detach(),
    "array": lambda out: out.numpy()[2:],
    "of another dtype": lambda out: out.view(torch.int32),
    "in a closure": lambda out: lambda: out,
    "storage": lambda out: out.untyped_storage(),
}


@pytest.mark.no_compiler
@pytest.mark.parametrize("kind", SEEN)
def test_what_is_still_seen_is_left_alone(kind) -> None:
    out = outputs.empty(SHAPE, torch.float32)
    place, seen = place_of(out), SEEN[kind](out)
    del out
    other = outputs.empty(SHAPE, torch.float32)
    assert place_of(other) != place
    del seen
    assert place_of(outputs.empty(SHAPE, torch.float32)) == place


@pytest.mark.no_compiler
def test_little_is_kept_and_small_outputs_not_at_all(monkeypatch) -> None:
    many = [outputs.empty(SHAPE, torch.float32) for _ in range(5)]
    del many
    assert len(outputs._kept) == 2
    outputs.release()
    monkeypatch.setattr(outputs, "LARGE_BYTES", 300 * 40 * 4 + 1)
    outputs.empty(SHAPE, torch.float32)
    assert not outputs._kept
    outputs.empty((301, 40), torch.float32)
    assert len(outputs._kept) == 1


def test_products_are_right_over_used_memory_in_every_thread() -> None:
    inputs, weight, bias = draw(300, 40, 70, 0.5)
    packed = pack(weight)
    results: list[Tensor] = []

    def work() -> None:
        for _ in range(30):
            out = multiply(inputs, packed, 40, bias)
            results.append(out) if len(results) < 20 else results.__setitem__(0, out)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({place_of(out) for out in results}) == len(results)
    for out in results:
        assert_is_dense(out, inputs, weight, bias)


def test_a_layer_uses_its_memory_again_and_desparsify_gives_it_back() -> None:
    model = nn.Sequential(SparseLinear(nn.Linear(70, 40)))
    inputs = torch.randn(300, 70)
    with torch.no_grad():
        first = model(inputs)
        kept = copy.deepcopy(first)
        place = place_of(first)
        del first
        second = model(inputs)
    assert place_of(second) == place
    torch.testing.assert_close(second, kept, rtol=0, atol=0)
    del second
    assert len(outputs._kept) == 1
    desparsify_(model)
    assert not outputs._kept


def test_gradients_and_growing_in_place_are_as_of_any_output() -> None:
    layer = SparseLinear(nn.Linear(70, 40))
    inputs = torch.randn(300, 70, requires_grad=True)
    out = layer(inputs)
    out.sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(300, -1))
    with torch.no_grad():
        other = layer(inputs).mul_(2)
    torch.testing.assert_close(other, 2 * out.detach())
