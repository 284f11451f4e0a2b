"""Scores that are computed twice and never kept: the same mask as one stable sort of them all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ditprune.checkpoints.statistics_file import Statistics
from ditprune.errors import TargetError
from ditprune.method import thresholds
from ditprune.method.statistics.column_norm import ColumnNorm
from ditprune.method.words import build
from ditprune.pruning import scoring, survey, zeroing
from ditprune.pruning.job import TargetOutcome
from ditprune.targets.discover import Target

NUM_OUT, NUM_IN = 45, 32
TARGET = Target("layer", (NUM_OUT, NUM_IN), "mlp", "blocks.0", 0)
CHUNK = 7 * NUM_IN  # does not divide the 45 rows

LAYER, CHANNEL = {"granularity": "layer"}, {"granularity": "channel"}
WAYS = [
    LAYER, CHANNEL, {"granularity": "cag"}, {"pattern": "2:4"}, {"pattern": "3:32"},
    {"granularity": "layer", "saliency": "magnitude"}, {"granularity": "layer", "saliency": "ria"},
    {"saliency": "wanda", "granularity": "channel"},
]  # fmt: skip
KINDS = ["normal", "ties", "equal", "zeros", "denormal", "huge", "rows apart"]
DTYPES = [torch.float16, torch.float32, torch.float64]
CASES = [
    *((kind, torch.bfloat16, words) for kind in KINDS for words in (LAYER, CHANNEL)),
    *((kind, dtype, LAYER) for kind in ("normal", "ties", "zeros") for dtype in DTYPES),
    *((kind, torch.bfloat16, words) for kind in ("normal", "ties") for words in WAYS[2:]),
    ("denormal", torch.float32, LAYER), ("huge", torch.float32, CHANNEL),
    ("rows apart", torch.bfloat16, WAYS[2]),
]  # fmt: skip


def statistics(num_in: int = NUM_IN) -> Statistics:
    draw = torch.Generator().manual_seed(1)
    sums = torch.rand(1, num_in, generator=draw, dtype=torch.float64) + 0.1
    return Statistics({"layer": ColumnNorm(sums, (1000,))}, {}, 8)


def weights(kind: str, dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(NUM_OUT, NUM_IN, generator=draw)
    if kind == "ties":
        weight = (weight * 2).round() / 2
    elif kind == "equal":
        weight = torch.full_like(weight, -0.25)
    elif kind == "zeros":
        weight *= weight.abs() > 1
        weight[3:9] = 0
        weight[20] = -0.0
    elif kind == "denormal":
        weight *= 1e-38
    elif kind == "huge":
        weight *= 1e19
    elif kind == "rows apart":
        weight *= torch.logspace(-2, 2, NUM_OUT)[:, None]
    return weight.to(dtype)


def by_sort(kind: str, weight: Tensor, words: dict[str, str], g_out: float, share: float) -> Tensor:
    """The removed weights, from a stable sort of each group."""
    recipe = build(**words)
    norms = scoring.norms_for(recipe.saliency, "layer", statistics(), recipe)
    if kind in ("denormal", "huge"):  # of which float32 does not hold the scores
        weight, norms = weight.double(), {name: norm.double() for name, norm in norms.items()}
    scores = recipe.saliency(weight, **norms)
    groups = recipe.groups(g_out)
    num_groups, size = groups.group_shape(NUM_OUT, NUM_IN)
    num_remove = size - groups.num_keep(size, share)
    gone = torch.zeros(num_groups, size, dtype=torch.bool)
    order = torch.sort(scores.reshape(num_groups, size), dim=1, stable=True).indices
    gone.scatter_(1, order[:, :num_remove], True)
    return gone.reshape(NUM_OUT, NUM_IN)


def pruned(weight: Tensor, words: dict[str, str], share: float) -> tuple[Tensor, TargetOutcome]:
    weight = weight.clone()
    outcome = zeroing.prune_weight_(TARGET, weight, statistics(), build(**words), share)
    return weight, outcome


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows at a time, a bracket from every second score, and much of the scores in it."""
    monkeypatch.setattr(scoring, "_CHUNK_WEIGHTS", CHUNK)
    monkeypatch.setattr(survey, "_ONE_IN", 2)
    monkeypatch.setattr(thresholds, "_LARGEST_SHARE", 2)


@pytest.mark.parametrize(
    ("kind", "dtype", "words"), CASES, ids=lambda x: "-".join(x.values()) if x in WAYS else str(x)
)
def test_what_goes_is_what_a_stable_sort_puts_first(
    kind, dtype, words, in_pieces, monkeypatch, same_bits
) -> None:
    dense = weights(kind, dtype)
    for share in (0, 0.5, 0.99):
        weight, outcome = pruned(dense, words, share)
        gone = by_sort(kind, dense, words, outcome.g_out, share)
        same_bits(weight, torch.where(gone, torch.zeros_like(dense), dense))
        assert outcome.num_pruned == outcome.num_asked == int(gone.sum())
        assert outcome.num_zero == int((weight == 0).sum())
    monkeypatch.setattr(survey, "_NUM_WORKERS", 1)
    alone, same = pruned(dense, words, share)
    same_bits(alone, weight)
    assert same == outcome
    monkeypatch.setattr(zeroing.Computed, "of", lambda *_: None)  # all scores at once
    whole, same = pruned(dense, words, share)
    same_bits(whole, weight)
    assert same == outcome


@pytest.mark.parametrize("words", [w for w in WAYS if w.get("saliency") != "ria"], ids=str)
def test_scores_are_not_kept(words, in_pieces, monkeypatch) -> None:
    monkeypatch.setattr(zeroing, "scores_of", None)
    for share in (0.1, 0.5, 0.85):
        assert pruned(weights("rows apart", torch.float32), words, share)[1].num_pruned > 0


def test_a_bracket_that_missed_is_no_answer(in_pieces, monkeypatch) -> None:
    words, dense = {"granularity": "layer"}, weights("normal", torch.float32)
    expected, _ = pruned(dense, words, 0.5)
    around, seen = survey.Bracket.around, []
    original = zeroing.scores_of
    monkeypatch.setattr(zeroing, "scores_of", lambda *a: seen.append(a) or original(*a))
    for low, high in [(1e9, 2e9), (-2.0, -1.0), (0.0, 1e9)]:  # too high, too low, too much
        bracket = replace(around(torch.rand(9).numpy(), 0.5), low=low, high=high)
        monkeypatch.setattr(survey.Bracket, "around", lambda *_, bracket=bracket: bracket)
        torch.testing.assert_close(pruned(dense, words, 0.5)[0], expected)
    assert len(seen) == 3


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_weights_that_are_no_numbers_are_refused_untouched(
    granularity, wrong, in_pieces, same_bits
) -> None:
    weight = weights("normal", torch.bfloat16)
    weight[40, 1] = wrong
    before = weight.clone()
    with pytest.raises(TargetError, match="layer: its weight holds NaN or Inf"):
        zeroing.prune_weight_(TARGET, weight, statistics(), build(granularity=granularity))
    same_bits(weight, before)


def test_an_inference_tensor_is_pruned_in_inference_mode(in_pieces) -> None:
    with torch.inference_mode():
        weight = weights("normal", torch.float32)
        outcome = zeroing.prune_weight_(TARGET, weight, statistics(), build(granularity="layer"))
        assert int((weight == 0).sum()) == outcome.num_pruned == NUM_OUT * NUM_IN // 2


def test_the_number_of_torch_threads_stays(in_pieces, with_threads) -> None:
    words, dense = {"granularity": "layer"}, weights("normal", torch.bfloat16)
    seen = with_threads(2, lambda: (pruned(dense, words, 0.5), torch.get_num_threads()))
    assert seen[1] == 2
    assert seen[0][1] == with_threads(1, lambda: pruned(dense, words, 0.5))[1]
