"""Memory of large outputs: used again when nothing sees it any more, and never before."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ditprune.runtime import desparsify_, outputs
from ditprune.runtime.kernel_call import multiply
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
    assert len(outputs._blocks) == 2
    outputs.release()
    monkeypatch.setattr(outputs, "LARGE_BYTES", 300 * 40 * 4 + 1)
    outputs.empty(SHAPE, torch.float32)
    assert not outputs._blocks
    outputs.empty((301, 40), torch.float32)
    assert len(outputs._blocks) == 1


@pytest.mark.no_compiler
def test_memory_in_use_when_all_is_released_is_not_kept_later() -> None:
    out = outputs.empty(SHAPE, torch.float32)
    outputs.release()
    del out
    assert not outputs._blocks


def python(code: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.no_compiler
def test_kept_memory_never_stands_in_the_way_of_other_sizes() -> None:
    pytest.importorskip("resource", reason="no limits of memory on this system")
    sizes = python("""
        import re, resource, torch
        from ditprune.runtime import outputs
        used_kb = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
        limit = 1024 * used_kb + (700 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for num_mib in (234, 351, 468):
            print(outputs.empty((num_mib << 20,), torch.uint8).nbytes >> 20)
    """)
    assert sizes.split() == ["234", "351", "468"]


@pytest.mark.no_compiler
@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_a_default_device_is_no_concern_of_outputs(limit, monkeypatch) -> None:
    monkeypatch.setattr(outputs, "LARGE_BYTES", limit)
    with torch.device("meta"):
        assert outputs.empty(SHAPE, torch.float32).device.type == "cpu"


@pytest.mark.no_compiler
def test_no_signal_is_lost_where_a_tensor_dies() -> None:
    """What a signal raises in Python code that a dying object calls is printed and dropped."""
    caught = python("""
        import signal, time, torch
        from ditprune.runtime import outputs

        def stop(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, stop)
        outputs.LARGE_BYTES, shape, caught = 1, (300, 4000), 0
        for _ in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                h, end = outputs.empty(shape, torch.float32).zero_(), time.monotonic() + 5
                while time.monotonic() < end:
                    h = outputs.empty(shape, torch.float32).zero_() * h
                break
            except KeyboardInterrupt:
                caught += 1
        print(caught)
    """)
    assert caught == "20\n"


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
    assert len(outputs._blocks) == 1
    desparsify_(model)
    assert not outputs._blocks


def test_gradients_and_growing_in_place_are_as_of_any_output() -> None:
    layer = SparseLinear(nn.Linear(70, 40))
    inputs = torch.randn(300, 70, requires_grad=True)
    out = layer(inputs)
    out.sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(300, -1))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            other = layer(inputs).mul_(2)
        torch.testing.assert_close(other, 2 * out)
    other.sum().backward()
    torch.testing.assert_close(inputs.grad, 3 * layer.weight.sum(0).expand(300, -1))
