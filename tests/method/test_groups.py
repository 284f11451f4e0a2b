"""How each granularity cuts a layer, and how many of a group stay."""

from __future__ import annotations

import pytest
import torch

from ditprune.errors import RecipeError
from ditprune.method.granularity import GRANULARITIES, NM, PerChannel, PerLayer


def test_layer_and_channel_cut_a_weight_into_one_and_into_rows() -> None:
    assert PerLayer().group_shape(6, 10) == (1, 60)
    assert PerChannel().group_shape(6, 10) == (6, 10)


def test_n_of_m_cuts_a_row_into_runs_of_m() -> None:
    assert NM(2, 4).group_shape(3, 8) == (6, 4)
    weight = torch.arange(24).reshape(3, 8)
    assert weight.reshape(NM(2, 4).group_shape(3, 8))[3].tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize("groups", [PerLayer(), PerChannel()], ids=repr)
@pytest.mark.parametrize("size", [1, 7, 32, 1536, 1152 * 1152])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.55, 0.999])
def test_the_removed_count_is_the_rounded_share(groups, size: int, sparsity: float) -> None:
    assert size - groups.num_keep(size, sparsity) == round(sparsity * size)


def test_n_of_m_keeps_n() -> None:
    assert NM(1, 4).num_keep(4, None) == 1
    assert NM(5, 8).num_keep(8, None) == 5


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("2:4", NM(2, 4)), ("4:8", NM(4, 8)), (" 1:4 ", NM(1, 4)), ("7:16", NM(7, 16))],
)
def test_parse_reads_n_colon_m(text: str, pattern: NM) -> None:
    assert NM.parse(text) == pattern
    assert NM.parse(pattern.name) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "2:",
        ":4",
        "2-4",
        "2:4:8",
        "a:b",
        "-2:4",
        "2.0:4",
        "2: 4",
        "0:4",
        "4:4",
        "4:2",
        "0:0",
    ],
)
def test_parse_refuses_what_is_no_pattern(text: str) -> None:
    with pytest.raises(RecipeError, match=r"pattern: .*as in 2:4"):
        NM.parse(text)


@pytest.mark.parametrize(("keep", "of"), [(0, 4), (4, 4), (5, 4), (-1, 4)])
def test_an_impossible_pattern_cannot_be_made(keep: int, of: int) -> None:
    with pytest.raises(RecipeError, match="0 < N < M"):
        NM(keep, of)


def test_a_row_that_does_not_divide_is_refused() -> None:
    with pytest.raises(RecipeError, match="2:4 needs input channels divisible by 4, got 1538"):
        NM(2, 4).group_shape(64, 1538)
    assert NM(2, 4).group_shape(63, 1536) == (63 * 384, 4)  # only the input side matters


def test_the_registry_names_its_entries() -> None:
    assert {name: GRANULARITIES[name]().name for name in GRANULARITIES} == {
        "layer": "layer", "channel": "channel", "cag": "cag",
    }  # fmt: skip
