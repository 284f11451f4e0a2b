"""Inspection: what pruning would do, as far as it can be known."""

from __future__ import annotations

import inspect as signatures

import pytest

import ditprune
from ditprune.errors import RecipeError, StatisticsError, TargetError
from ditprune.targets.discover import discover


def test_inspect_changes_nothing(tiny_dit, tiny_stats, same_bits) -> None:
    denoiser = tiny_dit()
    before = tiny_dit().state_dict()
    ditprune.inspect(denoiser, tiny_stats)
    for name, tensor in denoiser.state_dict().items():
        same_bits(tensor, before[name])


def test_inspect_takes_the_arguments_of_prune() -> None:
    asked = [set(signatures.signature(f).parameters) for f in (ditprune.inspect, ditprune.prune_)]
    # Updating also takes the calls, memory, and who hears of them.
    assert asked[0] == asked[1] - {"sparsity", "batches", "max_gram_bytes", "progress"}


def test_inspect_leaves_open_what_an_allocation_will_measure(tiny_dit, tiny_stats) -> None:
    even = ditprune.inspect(tiny_dit(), tiny_stats, preset="paper")
    assert all(target.num_prune for target in even.targets.values())
    best = ditprune.inspect(tiny_dit(), tiny_stats, preset="best", granularity="cag")
    assert {target.num_prune for target in best.targets.values()} == {None}
    assert {t.granularity for t in best.targets.values()} == {"layer", "channel"}


def test_inspect_without_statistics_says_what_can_be_known(tiny_dit) -> None:
    denoiser = tiny_dit()
    plan = ditprune.inspect(denoiser)
    assert plan.num_weights == sum(t.num_weights for t in discover(denoiser).values())
    assert plan.num_parameters == sum(p.numel() for p in denoiser.parameters())
    assert {(t.g_out, t.granularity, t.num_prune) for t in plan.targets.values()} == {
        (None, None, None)
    }
    plan = ditprune.inspect(denoiser, granularity="channel", sparsity=0.25)
    target = plan.targets["transformer_blocks.0.ff.net.2"]
    assert (target.g_out, target.granularity, target.num_prune) == (None, "channel", 32 * 32)
    plan = ditprune.inspect(denoiser, saliency="magnitude")
    assert all(target.g_out is not None for target in plan.targets.values())


def test_inspect_refuses_what_prune_refuses(tiny_dit, tiny_stats) -> None:
    with pytest.raises(RecipeError, match="3:5 needs input channels divisible by 5"):
        ditprune.inspect(tiny_dit(), tiny_stats, pattern="3:5")
    with pytest.raises(StatisticsError, match="made from other weights"):
        ditprune.inspect(tiny_dit(seed=1), tiny_stats)
    with pytest.raises(TargetError, match="matches none"):
        ditprune.inspect(tiny_dit(), exclude="nothing")
