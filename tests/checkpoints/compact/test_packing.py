"""Packing: every bit comes back, the sizes are those promised, and hostile bytes are refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditprune.checkpoints.compact import packing
from ditprune.checkpoints.compact.head import GROUPS, ITEM_BYTES, Head, read_head
from ditprune.checkpoints.compact.packing import (
    CHUNK_WEIGHTS,
    pack_weight,
    smallest,
    unpack_weight,
)
from ditprune.errors import ModelError

WORDS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64}


def weight(num: int, sparsity: float, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    """Any bits, with a share of +0.0 that is exact."""
    generator = np.random.default_rng(seed)
    words = generator.integers(1, 1 << 16, num).astype(WORDS[dtype])
    words[generator.permutation(num)[: round(num * sparsity)]] = 0
    return words


def in_groups(num_groups: int, kept: int, size: int, dtype: str = "BF16") -> np.ndarray:
    """Any bits, `kept` of every `size` not +0.0."""
    words = weight(num_groups * size, 0, dtype).reshape(num_groups, size)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(size), (num_groups, 1)), axis=1)
    words[order >= kept] = 0
    return words.reshape(-1)


def packed(words: np.ndarray, dtype: str = "BF16") -> tuple[Head, memoryview]:
    raw = words.view(np.uint8).data
    head = smallest(raw, dtype, words.shape)
    return head, pack_weight(raw, head)


def same(words: np.ndarray, dtype: str = "BF16") -> Head:
    """Pack and unpack; the bits and the head must be the same."""
    head, raw = packed(words, dtype)
    assert raw.nbytes == head.size_bytes
    assert raw.nbytes % 8 == 0
    again, dense = unpack_weight(raw, "w")
    assert again == head == read_head(raw, "w")
    assert bytes(dense) == words.tobytes()
    return head


@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 0.57), (0.7, 0.37), (0.9, 0.17)])
def test_an_unstructured_weight_takes_what_is_promised(sparsity, most) -> None:
    words = weight(1 << 16, sparsity)
    head = same(words)
    assert head.form == "mask"
    assert head.size_bytes <= most * words.nbytes


@pytest.mark.parametrize(
    ("kept", "size", "most"), [(2, 4, 0.57), (1, 2, 0.54), (1, 4, 0.29), (1, 8, 0.16)]
)
@pytest.mark.parametrize("dtype", WORDS)
def test_n_of_m_takes_what_is_promised(kept, size, most, dtype) -> None:
    words = in_groups(1 << 14, kept, size, dtype)
    head = same(words, dtype)
    assert head.form == f"{kept}:{size}"
    assert head.size_bytes <= most * words.nbytes


def test_four_of_eight_is_a_mask_since_positions_would_take_more() -> None:
    head = same(in_groups(1 << 14, 4, 8))
    assert head.form == "mask"


def test_groups_with_fewer_values_than_n_keep_zeros() -> None:
    words = in_groups(1 << 10, 2, 4)
    words[:16] = 0
    words[64:72] = [0, 0, 0, 7, 0, 0, 0, 0]
    assert same(words).form == "2:4"


def test_only_plus_zero_is_dropped() -> None:
    """-0.0, NaNs with payloads, denormals and infinities are values like any other."""
    special = {
        "BF16": [0x8000, 0x7FC1, 0xFFFF, 0x0001, 0x7F80],
        "F32": [0x8000_0000, 0x7F80_0001, 0xFFFF_FFFF, 1, 0xFF80_0000],
    }
    for dtype, values in special.items():
        words = np.zeros(64, WORDS[dtype])
        words[3:8] = values
        assert same(words, dtype).num_values == 5


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from(list(WORDS)), st.integers(0, 9))
def test_any_length_and_share_come_back(num, sparsity, dtype, seed) -> None:
    same(weight(num, sparsity, dtype, seed), dtype)


@given(st.integers(1, 60), st.sampled_from(list(GROUPS)), st.sampled_from(list(WORDS)))
def test_any_number_of_groups_comes_back(num_groups, group, dtype) -> None:
    same(in_groups(num_groups, *group, dtype), dtype)


@pytest.mark.parametrize("extra", [-8, 0, 3, 16])
def test_chunks_join(extra, monkeypatch) -> None:
    monkeypatch.setattr(packing, "CHUNK_WEIGHTS", 64)
    same(weight(4 * 64 + extra, 0.6))
    for group in GROUPS:
        same(in_groups((4 * 64 + 16 + 8 * (extra > 0)) // group[1], *group))


def test_the_real_chunk_is_one_of_whole_bytes_of_everything() -> None:
    assert all(
        CHUNK_WEIGHTS * kept // size * bits % 8 == 0 for (kept, size), bits in GROUPS.items()
    )
    same(weight(CHUNK_WEIGHTS + 5, 0.5))
    same(in_groups(CHUNK_WEIGHTS // 4 + 3, 2, 4))


def test_a_weight_of_zeros_and_a_dense_one_come_back() -> None:
    assert same(np.zeros(100, np.uint16)).num_values <= 50
    assert same(weight(100, 0)).num_values == 100


MASK = packed(weight(1000, 0.5))[1]
PAIRS = packed(in_groups(250, 2, 4))[1]


def spoiled(raw: memoryview, offset: int, form: str, *values: object) -> memoryview:
    copy = bytearray(raw)
    struct.pack_into(f"<{form}", copy, offset, *values)
    return memoryview(copy)


HOSTILE = {
    "nothing": (memoryview(b""), "0 bytes"),
    "half a head": (MASK[:20], "20 bytes"),
    "another magic": (spoiled(MASK, 0, "4s", b"PK\3\4"), "begins with"),
    "an unknown dtype": (spoiled(MASK, 4, "4s", b"I8"), "dtype 'I8'"),
    "a dtype that is no text": (spoiled(MASK, 4, "4s", b"\xff\xfe"), "dtype"),
    "a group that is not known": (spoiled(MASK, 8, "HH", 3, 5), "3:5"),
    "a group of nothing": (spoiled(MASK, 8, "HH", 1, 0), "1:0"),
    "no axes": (spoiled(MASK, 12, "I", 0), "0 axes"),
    "too many axes": (spoiled(MASK, 12, "I", 1 << 31), "axes"),
    "more axes than bytes": (MASK[:24], "1 axes in 24 bytes"),
    "more values than weights": (spoiled(MASK, 16, "Q", 1001), "1001 values"),
    "values without end": (spoiled(MASK, 16, "Q", (1 << 64) - 1), "values"),
    "a shape of nothing": (spoiled(MASK, 24, "Q", 0), "values of 0 weights"),
    "a huge shape": (spoiled(MASK, 24, "Q", 1 << 60), "its head says"),
    "a huge shape of groups": (spoiled(PAIRS, 24, "Q", 1 << 60), "values of"),
    "groups that do not divide it": (spoiled(PAIRS, 24, "Q", 1001), "under 2:4"),
    "bytes missing": (MASK[:-8], "its head says"),
    "bytes too many": (memoryview(bytes(MASK) + b"\0" * 8), "its head says"),
    "a bit too few": (spoiled(MASK, MASK.nbytes - 128, "Q", 0), "bits in its mask"),
    "positions that do not ascend": (spoiled(PAIRS, PAIRS.nbytes - 64, "B", 0), "ascend"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_hostile_bytes_are_refused_by_name(case) -> None:
    raw, match = HOSTILE[case]
    with pytest.raises(ModelError, match=rf"^the\.weight: not a packed weight.*{match}"):
        unpack_weight(raw, "the.weight")


def test_a_bit_beyond_the_last_weight_is_refused() -> None:
    head, raw = packed(weight(12, 0.5))
    places = head.positions_start
    mask = raw[places] | raw[places + 1] << 8
    lowest = mask & -mask
    moved = spoiled(raw, places, "H", mask - lowest + (1 << 13))
    with pytest.raises(ModelError, match="beyond the last weight"):
        unpack_weight(moved, "w")


def test_a_position_outside_its_group_is_refused() -> None:
    head, raw = packed(in_groups(16, 1, 8))
    with pytest.raises(ModelError, match="ascend within 1:8"):
        unpack_weight(spoiled(raw, head.positions_start, "B", 0x09), "w")


@given(st.data())
def test_random_damage_is_refused_or_gives_as_many_bytes(data) -> None:
    raw = bytearray(data.draw(st.sampled_from([bytes(MASK), bytes(PAIRS)])))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        head, dense = unpack_weight(memoryview(raw), "w")
    except ModelError:
        return
    assert dense.nbytes == head.dense_bytes <= 8 * len(raw) * max(ITEM_BYTES.values())
