"""Masks: one bit a weight, smaller where they repeat, and applied to any dtype."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditprune.checkpoints.compact import mask_bits
from ditprune.checkpoints.compact.mask_bits import apply_, compressed, expanded, nonzero_bits
from ditprune.checkpoints.compact.packing import num_set
from ditprune.errors import ModelError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def raw_of(weights: torch.Tensor) -> memoryview:
    """The bytes of a tensor, which share its memory."""
    return weights.view(-1).view(torch.uint8).numpy().data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num", [1, 7, 8, 9, 1000])
def test_a_mask_is_of_what_is_not_zero_whatever_its_sign(dtype, num, monkeypatch) -> None:
    monkeypatch.setattr(mask_bits, "CHUNK_WEIGHTS", 64)
    generator = torch.Generator().manual_seed(num)
    weights = torch.randn(num, generator=generator).to(DTYPES[dtype])
    weights[::3], weights[::5] = 0.0, -0.0
    weights[1::7] = float("nan")
    bits = nonzero_bits(raw_of(weights), dtype)
    assert len(bits) == -(-num // 8)
    expected = np.packbits((weights != 0).numpy(), bitorder="little")
    assert (bits == expected).all()
    assert num_set(bits) == int((weights != 0).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_applying_puts_plus_zero_where_the_mask_has_none(dtype, monkeypatch, same_bits) -> None:
    monkeypatch.setattr(mask_bits, "CHUNK_WEIGHTS", 64)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(203, generator=generator).to(DTYPES[dtype])
    weights[3], weights[10:20] = float("nan"), -0.0
    keep = torch.rand(203, generator=generator) < 0.5
    keep[3], keep[10:15], keep[15:20] = False, True, False
    expected = torch.where(keep, weights, torch.zeros_like(weights))
    bits = np.packbits(keep.numpy(), bitorder="little")
    apply_(raw_of(weights), dtype, bits)
    same_bits(weights, expected)


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 9))
def test_any_mask_comes_back_and_takes_no_more_than_a_bit(num, share, seed) -> None:
    keep = np.random.default_rng(seed).random(num) < share
    bits = np.packbits(keep, bitorder="little")
    small = compressed(bits)
    assert len(small) <= len(bits)
    assert (expanded(memoryview(small), num, "m") == bits).all()


def test_masks_that_say_less_take_less() -> None:
    generator = np.random.default_rng(0)
    num = 1 << 18
    random = np.packbits(generator.random(num) < 0.5, bitorder="little")
    pairs = np.tile(np.array([[1, 1, 0, 0]]), (num // 4, 1))
    pairs = np.packbits(generator.permuted(pairs, axis=1).reshape(-1), bitorder="little")
    few = np.packbits(generator.random(num) < 0.1, bitorder="little")
    share = [8 * len(compressed(bits)) / num for bits in (random, pairs, few, np.zeros_like(few))]
    # The entropies are 1, log2(6) / 4 = 0.646, 0.469 and 0.
    assert share[0] == 1
    assert share[1] < 0.66
    assert share[2] < 0.50
    assert share[3] < 0.01


BITS = np.packbits(np.arange(1000) % 7 == 0, bitorder="little")
SMALL = compressed(BITS)
HOSTILE = {
    "nothing": (b"", "does not hold 125"),
    "no zlib": (b"\0" * 20, "compression method"),
    "half": (SMALL[: len(SMALL) // 2], "does not hold"),
    "more behind": (SMALL + b"\0", "does not hold"),
    "a bomb cut short": (zlib.compress(bytes(1 << 20))[:120], "does not hold"),
    "too short inside": (zlib.compress(bytes(50)), "does not hold"),
    "too long inside": (zlib.compress(bytes(126)), "does not hold"),
    "too long": (bytes(126), "126 bytes, expected at most 125"),
}


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_hostile_masks_are_refused_by_name(case) -> None:
    raw, match = HOSTILE[case]
    with pytest.raises(ModelError, match=rf"^the\.mask: not the mask of its target .*({match})"):
        expanded(memoryview(raw), 1000, "the.mask")


def test_a_bomb_is_not_unpacked() -> None:
    num_weights, bomb = 1 << 20, zlib.compress(bytes(50 << 20))
    assert len(bomb) < num_weights // 8
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="does not hold 131072 bytes"):
            expanded(memoryview(bomb), num_weights, "m")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_bits_beyond_the_last_weight_are_refused() -> None:
    with pytest.raises(ModelError, match="beyond the last weight"):
        expanded(memoryview(b"\xff\xff"), 12, "m")
