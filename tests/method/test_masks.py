"""The one rule that selects: exact counts, ties by position, one answer on every path."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ditprune.errors import TargetError
from ditprune.method import masks
from ditprune.method.masks import keep_best


def naive_keep(scores_GK: Tensor, num_keep: int) -> Tensor:
    """Each group in ascending stable order; the first entries go."""
    keep_GK = torch.ones(scores_GK.shape, dtype=torch.bool)
    for scores, keep in zip(scores_GK.tolist(), keep_GK, strict=True):
        order = sorted(range(len(scores)), key=scores.__getitem__)
        keep[order[: len(scores) - num_keep]] = False
    return keep_GK


def check(scores_GK: Tensor, num_keep: int) -> None:
    keep_GK = keep_best(scores_GK, num_keep)
    assert keep_GK.dtype == torch.bool
    assert (keep_GK.sum(1) == num_keep).all()
    torch.testing.assert_close(keep_GK, naive_keep(scores_GK, num_keep))


def draw(num_groups: int, size: int, kind: str, seed: int = 0) -> Tensor:
    """Scores with no ties, with many, with those of bf16, or with nothing else."""
    scores = torch.rand(num_groups, size, generator=torch.Generator().manual_seed(seed))
    if kind == "few levels":
        return (scores * 4).floor()
    if kind == "bf16":
        return scores.bfloat16().float()
    return torch.full_like(scores, 0.25) if kind == "all equal" else scores


KINDS = ("distinct", "few levels", "bf16", "all equal")


@given(
    num_groups=st.integers(1, 5),
    size_and_keep=st.integers(1, 200).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k))),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
)
def test_equals_a_stable_sort_of_each_group(
    num_groups: int, size_and_keep: tuple[int, int], kind: str, seed: int
) -> None:
    size, num_keep = size_and_keep
    check(draw(num_groups, size, kind, seed), num_keep)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_on_one_large_group(kind: str) -> None:
    check(draw(1, 20_000, kind), 7_001)


@pytest.mark.parametrize("size", [4, 16, 17, 40])
def test_among_equals_the_later_positions_stay(size: int) -> None:
    keep = keep_best(torch.ones(2, size), 3)
    assert keep.nonzero()[:, 1].tolist() == 2 * [size - 3, size - 2, size - 1]


def test_half_of_a_group_of_four_is_two() -> None:
    """Published code prunes `W <= sorted[int(n * s)]`: three of these."""
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert keep_best(scores, 2).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("size", range(2, 17))
def test_both_paths_agree_on_small_groups(size: int) -> None:
    for kind in KINDS:
        scores = draw(6, size, kind)
        for num_keep in range(1, size):
            torch.testing.assert_close(
                masks._keep_by_pairs(scores, num_keep), masks._keep_by_threshold(scores, num_keep)
            )


@pytest.mark.parametrize("size", [4, 50])
@pytest.mark.parametrize("chunk", [1, 100, 149, 150])
def test_chunks_do_not_change_the_mask(
    size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = draw(31, size, "few levels")
    whole = keep_best(scores, size // 2)
    monkeypatch.setattr(masks, "CHUNK_WEIGHTS", chunk)
    torch.testing.assert_close(keep_best(scores, size // 2), whole)
    torch.testing.assert_close(whole, naive_keep(scores, size // 2))


@pytest.mark.parametrize(("num_groups", "size"), [(1, 300_001), (500, 601), (50_000, 4)])
def test_same_mask_on_any_number_of_threads(num_groups: int, size: int, with_threads) -> None:
    scores = draw(num_groups, size, "bf16")
    one = with_threads(1, lambda: keep_best(scores, size // 2))
    two = with_threads(2, lambda: keep_best(scores, size // 2))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("size", [4, 40])
def test_scores_of_any_stride_are_read_and_left_alone(size: int) -> None:
    scores = draw(size, 3, "few levels").T
    before = scores.clone()
    check(scores, 3)
    torch.testing.assert_close(scores, before)


@pytest.mark.parametrize("size", [4, 40])
def test_infinite_scores_are_numbers(size: int) -> None:
    scores = draw(3, size, "distinct")
    scores[0, 0] = scores[1, 1] = scores[1, 2] = math.inf
    scores[2] = math.inf
    scores[0, 3] = -math.inf
    check(scores, 2)


@pytest.mark.parametrize("num_keep", [0, 2, 4])
def test_nan_is_refused_with_the_count_and_what_to_do(num_keep: int) -> None:
    scores = torch.tensor([[1.0, math.nan, 3.0, 4.0], [math.nan, 2.0, 3.0, math.inf]])
    with pytest.raises(TargetError, match=r"2 of 8 scores are NaN.*look for NaN or Inf"):
        keep_best(scores, num_keep)


@pytest.mark.parametrize("num_keep", [-1, 5])
def test_a_count_outside_the_group_is_refused(num_keep: int) -> None:
    with pytest.raises(ValueError, match="num_keep"):
        keep_best(torch.ones(1, 4), num_keep)
