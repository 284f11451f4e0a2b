"""The statistics of a whole denoiser: asked by layer name, merged across calibrations."""

from __future__ import annotations

import pytest
import torch

from ditprune.checkpoints.merge_statistics import merge_statistics
from ditprune.checkpoints.statistics_file import Statistics, findings
from ditprune.errors import StatisticsError
from ditprune.method.statistics.column_norm import ColumnNorm


def state(*squares: float, num_tokens: int = 5) -> ColumnNorm:
    return ColumnNorm(torch.tensor([squares], dtype=torch.float64), (num_tokens,))


def test_a_layers_norm_is_the_root_of_its_sums() -> None:
    stats = Statistics({"a": state(4, 9)}, {"a": "f"}, 1)
    torch.testing.assert_close(stats.column_norm("a"), torch.tensor([2.0, 3.0]), rtol=0, atol=0)
    assert stats.num_tokens("a") == 5


@pytest.mark.parametrize("ask", [Statistics.column_norm, Statistics.num_tokens])
def test_an_unknown_layer_is_refused_with_the_nearest_name(ask) -> None:
    stats = Statistics({"blocks.0.attn.to_q": state(1), "blocks.0.ff": state(1)}, {"a": "f"}, 1)
    with pytest.raises(
        StatisticsError, match=r"no layer 'blocks.0.attn.toq'; did you mean 'blocks.0.attn.to_q'\?"
    ):
        ask(stats, "blocks.0.attn.toq")


def test_merge_adds_sums_tokens_and_calls() -> None:
    first = Statistics({"a": state(4, 9)}, {"a": "f"}, 2, protocol={"seed": 0})
    second = Statistics({"a": state(12, 16, num_tokens=7)}, {"a": "f"}, 3)
    both = merge_statistics(first, second)
    torch.testing.assert_close(both.column_norm("a"), torch.tensor([4.0, 5.0]), rtol=0, atol=0)
    assert both.num_tokens("a") == 12
    assert both.num_calls == 5
    assert both.fingerprints == {"a": "f"}
    assert both.protocol == {"seed": 0}
    torch.testing.assert_close(first.column_norm("a"), torch.tensor([2.0, 3.0]), rtol=0, atol=0)


def test_merge_keeps_what_is_shared_shared_and_the_rest_apart() -> None:
    qk, other, split_q, split_k = state(1), state(1), state(2), state(3)
    first = Statistics({"q": qk, "k": qk, "out": other}, {"a": "f"}, 1)
    both = merge_statistics(first, Statistics({"q": qk, "k": qk, "out": other}, {"a": "f"}, 1))
    assert both.column_norms["q"] is both.column_norms["k"]
    assert both.column_norms["q"] is not both.column_norms["out"]
    both = merge_statistics(
        first, Statistics({"q": split_q, "k": split_k, "out": other}, {"a": "f"}, 1)
    )
    assert both.column_norms["q"].sum_squares.item() == 3
    assert both.column_norms["k"].sum_squares.item() == 4


def test_merge_takes_a_layer_that_only_one_saw() -> None:
    first = Statistics({"a": state(1)}, {"a": "f"}, 1, never_called=("b", "c"))
    second = Statistics({"b": state(9)}, {"a": "f"}, 1, never_called=("a", "c"))
    both = merge_statistics(first, second)
    assert both.column_norm("a").item() == 1
    assert both.column_norm("b").item() == 3
    assert both.never_called == ("c",)


def test_merge_refuses_other_weights() -> None:
    first, second = (Statistics({"a": state(1)}, {"a": c}, 1) for c in "ab")
    with pytest.raises(StatisticsError, match="different weights"):
        merge_statistics(first, second)


def test_findings_say_what_was_noticed() -> None:
    quiet = Statistics({"a": state(1)}, {"a": "f"}, 2, num_inputs={"a": 2})
    assert findings(quiet) == []
    loud = Statistics(
        {"a": state(1), "b": state(1)},
        {"a": "f"},
        2,
        never_called=("c", "d", "e"),
        num_inputs={"a": 2, "b": 4},
        unused=("a",),
        padding={"encoder_attention_mask": (75, 100)},
    )
    never, vain, twice, padding = findings(loud)
    assert never.endswith("stays dense: c and 2 more")
    assert vain.endswith("costs nothing: a")
    assert twice.endswith("add up: b")
    assert padding.startswith("encoder_attention_mask masks 75% of its tokens")
