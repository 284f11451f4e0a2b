"""The kernel against dense float64, on every instruction set that this machine has."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ditprune.errors import KernelError
from ditprune.runtime.kernel_call import multiply
from ditprune.runtime.packed import Packed, pack
from sparse_products import SETS, assert_is_dense, draw

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


SHAPES = [  # tokens, rows, columns
    *((tokens, 40, 70) for tokens in (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 33)),
    *((tokens, 33, 64) for tokens in (64, 100, 127, 128, 129, 300)),
    (1, 1, 1), (2, 1, 200), (200, 1, 1), (7, 300, 1), (130, 257, 129), (5, 513, 63), (40, 600, 65),
]  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_dense_product(shape: tuple[int, int, int], name: str) -> None:
    for sparsity in (0.0, 0.5, 0.9, 1.0):
        inputs, weight, bias = draw(*shape, sparsity)
        for weight_dtype in (FLOAT32, BFLOAT16):
            weight_as = weight.to(weight_dtype)
            packed = pack(weight_as)
            for inputs_as in (inputs, inputs.to(BFLOAT16)):
                for bias_as in (None, bias, bias.to(weight_dtype)):
                    outputs = multiply(inputs_as, packed, len(weight), bias_as, name)
                    assert_is_dense(outputs, inputs_as, weight_as, bias_as)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=30)
@given(
    num_tokens=st.integers(1, 280),
    num_rows=st.integers(1, 140),
    num_columns=st.integers(1, 200),
    sparsity=st.floats(0, 1),
    num_threads=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_shape_on_any_number_of_threads(
    name, num_tokens, num_rows, num_columns, sparsity, num_threads, seed
) -> None:
    inputs, weight, bias = draw(num_tokens, num_rows, num_columns, sparsity, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        outputs = multiply(inputs, pack(weight), num_rows, bias, name)
    finally:
        torch.set_num_threads(before)
    assert_is_dense(outputs, inputs, weight, bias)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("num_tokens", [2, 6, 150])
def test_rows_full_and_empty(name: str, num_tokens: int) -> None:
    """Counts from 0 to the whole block, whose bits just fill a word."""
    inputs, weight, bias = draw(num_tokens, 100, 128, 0.0)
    for r in range(100):
        weight[r, r:] = 0
    weight[50:53] = 0
    weight[60:63, :] = 1
    assert_is_dense(multiply(inputs, pack(weight), 100, bias, name), inputs, weight, bias)


@pytest.mark.parametrize(("num_threads", "num_columns"), [(2, 15360), (4, 15360), (4, 2048)])
def test_more_tokens_and_columns_than_one_slab_holds(
    num_threads: int, num_columns: int, with_threads
) -> None:
    """Six tiles of tokens: three for each of two threads; four threads share each, or four of
    them and then two where they are smaller."""
    inputs, weight, bias = draw(700, 70, num_columns, 0.9)
    outputs = with_threads(num_threads, lambda: multiply(inputs, pack(weight), 70, bias))
    assert_is_dense(outputs, inputs, weight, bias)


def test_the_bits_do_not_depend_on_threads(with_threads) -> None:
    for num_tokens in (2, 300):
        inputs, weight, bias = draw(num_tokens, 700, 300, 0.5)
        runs = [
            with_threads(n, lambda: multiply(inputs, pack(weight), 700, bias))  # noqa: B023
            for n in (1, 2, 3)
        ]
        assert torch.equal(runs[0], runs[1])
        assert torch.equal(runs[0], runs[2])


def test_several_callers_at_once() -> None:
    inputs, weight, bias = draw(100, 200, 300, 0.5)
    packed = pack(weight)
    outputs: list[Tensor] = []
    callers = [
        threading.Thread(
            target=lambda: outputs.extend(multiply(inputs, packed, 200, bias) for _ in range(20))
        )
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(outputs) == 80
    for one in outputs:
        assert torch.equal(one, outputs[0])


@pytest.mark.parametrize("num_tokens", [2, 100])
def test_any_strides_and_leading_dimensions(num_tokens: int) -> None:
    inputs, weight, bias = draw(num_tokens, 50, 90, 0.5)
    packed = pack(weight)
    views = {
        "transposed": inputs.T.contiguous().T,
        "every other column": torch.stack([inputs, inputs], 2).flatten(1)[:, ::2],
        "part of a row": torch.cat([inputs, inputs], 1)[:, :90],
        "expanded": inputs[:1].expand(num_tokens, 90),
        "reversed": inputs.flip(0),
    }
    for view in views.values():
        assert_is_dense(multiply(view, packed, 50, bias), view, weight, bias)
    cube = inputs.reshape(2, num_tokens // 2, 90).transpose(0, 1)
    assert_is_dense(multiply(cube, packed, 50, bias), cube, weight, bias)
    assert multiply(inputs[0], packed, 50).shape == (50,)
    assert multiply(inputs[:0], packed, 50).shape == (0, 50)
    assert multiply(inputs[:0].view(3, 0, 90), packed, 50).shape == (3, 0, 50)


@pytest.mark.parametrize("num_tokens", [1, 6, 100])
@pytest.mark.parametrize("name", SETS)
def test_infinite_tokens_stay_in_their_rows(name: str, num_tokens: int) -> None:
    """Nothing is added for a weight that is not there."""
    inputs = torch.ones(num_tokens, 70)
    inputs[0, 0] = torch.inf
    weight = torch.zeros(40, 70)
    weight[3, 0], weight[4, 1] = 2, 3
    outputs = multiply(inputs, pack(weight), 40, None, name)
    assert outputs[0, 3] == torch.inf
    assert (outputs[:, 4] == 3).all()
    outputs[:, 3:5] = 0
    assert (outputs == 0).all()


@pytest.mark.parametrize("name", SETS)
def test_bfloat16_outputs_are_rounded_to_even(name: str) -> None:
    """Every case of rounding: an identity sends float32 sums of two bfloat16 through."""
    ulp = 2.0**-7
    pairs = [(1, ulp / 2), (1 + ulp, ulp / 2), (1, ulp / 2 + ulp / 256), (3e38, 3e38), (1, 0)]
    pairs += [(torch.nan, 1), (-1, -ulp / 2)]
    weight = torch.tensor(pairs)
    weight[-2, 0] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(FLOAT32)  # a NaN, too
    for num_tokens in (1, 20):
        outputs = multiply(
            torch.ones(num_tokens, 2, dtype=BFLOAT16), pack(weight), len(pairs), None, name
        )
        expected = weight.sum(1).to(BFLOAT16).expand(num_tokens, -1)
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("num_tokens", [1, 7, 128])
@settings(max_examples=30)
@given(data=st.data())
def test_hostile_columns_read_nothing_outside(name, num_tokens, data) -> None:
    """Any byte is some column of the block: a wrong product, in bounds, of finite numbers."""
    inputs, weight, _ = draw(num_tokens, 40, 64, 0.5)  # whole slabs, with nothing behind them
    packed = pack(weight)
    hostile = torch.tensor(data.draw(st.lists(st.integers(64, 255), min_size=8, max_size=8)))
    columns = hostile.to(torch.uint8).repeat(len(packed.columns) // 8 + 1)[: len(packed.columns)]
    outputs = multiply(inputs, packed._replace(columns=columns), 40, None, name)
    assert outputs.isfinite().all()


BYTE, WORD = st.integers(0, 255), st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("num_tokens", [1, 7, 140])
@settings(max_examples=30)
@given(which=st.sampled_from(["counts", "starts"]), place=st.integers(0, 10**6), value=WORD)
def test_hostile_counts_and_starts_are_refused(name, num_tokens, which, place, value) -> None:
    inputs, weight, _ = draw(num_tokens, 100, 200, 0.5)
    packed = pack(weight)
    broken = getattr(packed, which).clone()
    entry = broken.view(-1)[place % broken.numel()]
    entry.copy_(torch.tensor(value & 255 if which == "counts" else value))
    hostile = packed._replace(**{which: broken})
    if torch.equal(broken, getattr(packed, which)):
        multiply(inputs, hostile, 100, None, name)
        return
    with pytest.raises(KernelError, match="not what `pack` writes"):
        multiply(inputs, hostile, 100, None, name)


def wrong_buffers(packed: Packed) -> dict[str, Packed]:
    return {
        "too few values": packed._replace(values=packed.values[:-1]),
        "too few columns": packed._replace(columns=packed.columns[:-1]),
        "too few counts": packed._replace(counts=packed.counts[:-1]),
        "too few starts": packed._replace(starts=packed.starts[:-1]),
        "wide columns": packed._replace(columns=packed.columns.short()),
        "narrow starts": packed._replace(starts=packed.starts.int()),
        "gaps": packed._replace(values=packed.values.repeat_interleave(2)[::2]),
        "half precision": packed._replace(values=packed.values.half()),
    }


@pytest.mark.no_compiler
def test_buffers_of_other_sizes_and_dtypes_are_refused() -> None:
    inputs, weight, bias = draw(5, 100, 200, 0.5)
    packed = pack(weight)
    for case, wrong in wrong_buffers(packed).items():
        with pytest.raises(KernelError, match="sparse kernel: "):
            pytest.fail(f"{case}: {multiply(inputs, wrong, 100)}")
    for bad_inputs in (inputs.half(), inputs.double(), inputs.int(), inputs.to("meta")):
        with pytest.raises(KernelError, match="expected float32 or bfloat16 on the CPU"):
            multiply(bad_inputs, packed, 100)
    with pytest.raises(KernelError, match=r"counts are .* expected 256 of torch\.uint8"):
        multiply(inputs[:, :100], packed, 100)
    with pytest.raises(KernelError, match="bias of 99"):
        multiply(inputs, packed, 100, bias[:99])
    with pytest.raises(KernelError, match="bias is on meta, expected the CPU"):
        multiply(inputs, packed, 100, bias.to("meta"))
