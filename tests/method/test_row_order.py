"""The k-th smallest of each row is the one that a sort puts there, whatever is asked on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ditprune.method import row_order
from ditprune.method.row_order import count_in_rows, kth_smallest

Array = np.ndarray[Any, Any]

NUM_ROWS, ROW = 9, 1536


def scores(kind: str, dtype: type = np.float32, row: int = ROW) -> Array:
    draw = np.random.Generator(np.random.PCG64(0))
    drawn = draw.standard_normal((NUM_ROWS, row)) ** 2
    if kind == "rows apart":
        drawn *= np.logspace(-8, 8, NUM_ROWS)[:, None]
    elif kind == "few levels":
        drawn = np.floor(drawn)
    elif kind == "equal":
        drawn[:] = 0.25
    elif kind == "mostly zero":
        drawn[drawn < 2] = 0
    elif kind == "one row of ties":
        drawn[4] = np.floor(drawn[4])
    elif kind == "sorted":
        drawn.sort(axis=1)
    elif kind == "negative":
        drawn -= 1
    elif kind == "-0.0":
        drawn[drawn < 0.5] = -0.0
    elif kind == "Inf":
        drawn[:, ::3] = np.inf
    elif kind == "subnormal":
        drawn *= np.finfo(dtype).smallest_subnormal * 1000.0
    return drawn.astype(dtype)


KINDS = ["normal", "rows apart", "few levels", "equal", "mostly zero", "one row of ties", "sorted",
         "negative", "-0.0", "Inf", "subnormal"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_what_a_sort_puts_there(kind: str, dtype: type) -> None:
    given = scores(kind, dtype)
    in_order = np.sort(given, axis=1)
    for k in (1, 2, 77, ROW // 2, ROW * 4 // 5, ROW - 2, ROW):
        np.testing.assert_array_equal(kth_smallest(given, k), in_order[:, k - 1 : k])


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["normal", "rows apart", "one row of ties"])
def test_whole_rows_are_rarely_partitioned(
    kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, seen, original = scores(kind, row=3072), [0], row_order._by_partition

    def count(part: Array, k: int) -> Array:
        seen[0] += part.size
        return original(part, k)

    monkeypatch.setattr(row_order, "_by_partition", count)
    kth_smallest(given, round(share * 3072))
    rows_of_ties = kind == "one row of ties"
    assert seen[0] < (rows_of_ties + 0.5) * 3072 + NUM_ROWS * 3072 / 8


@pytest.mark.parametrize("size", [3, 1000, 65535, 65536])
def test_count_in_rows(size: int) -> None:
    mask = np.ones((2, size), bool)
    mask[1, ::2] = False
    assert count_in_rows(mask).tolist() == [size, size // 2]
