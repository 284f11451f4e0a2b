"""The mask that is chosen while weights train: exact counts, by score, and nothing comes back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from ditprune.method.granularity import PerChannel, PerLayer
from ditprune.method.words import build
from ditprune.pruning.update.layers import Layer
from ditprune.pruning.update.thinning import Thinning, thinning
from ditprune.targets.discover import Target

NUM_STEPS = 100
SHAPES = {"a": (8, 20), "b": (6, 10), "c": (4, 30)}


def layers(**groups: object) -> dict[str, Layer]:
    return {
        name: Layer(
            Target(name, shape, "mlp", "block", 0),
            partial(torch.ones, shape),
            torch.abs,
            dict,
            kind,
            0.0,
        )
        for (name, shape), kind in zip(SHAPES.items(), groups.values(), strict=True)
    }


ALL_LAYER = layers(a=PerLayer(), b=PerLayer(), c=PerLayer())
MIXED = layers(a=PerLayer(), b=PerChannel(), c=PerLayer())
ALL_CHANNEL = layers(a=PerChannel(), b=PerChannel(), c=PerChannel())


def begin(which: dict[str, Layer], share: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name, layer in which.items():
        scores = torch.rand(layer.target.shape, generator=generator)
        masks[name] = replace(layer, read=lambda scores=scores: scores).mask_by_saliency(share)
    return masks


def run(plan: Thinning, keep: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The masks after every step that removes something, scores changing all the time."""
    generator, found = torch.Generator().manual_seed(1), []
    for step in range(NUM_STEPS):
        if plan.is_due(step, NUM_STEPS):
            scores = {n: torch.rand(m.shape, generator=generator) for n, m in keep.items()}
            keep = plan.masks(keep, scores, step, NUM_STEPS)
            found.append(keep)
    return found


def num_removed(keep: dict[str, Tensor]) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in keep.items()}


@pytest.mark.parametrize(
    "which", [ALL_LAYER, MIXED, ALL_CHANNEL], ids=["layer", "mixed", "channel"]
)
@pytest.mark.parametrize("allocation", ["sensitivity", "uniform"])
def test_weights_go_in_many_small_steps_and_never_come_back(which, allocation) -> None:
    shares = {name: dict.fromkeys(which, share) for name, share in (("now", 0.4), ("end", 0.6))}
    plan = thinning(which, build(allocation=allocation), shares["now"], shares["end"])
    keep = begin(which, 0.4)
    found = run(plan, keep)
    assert len(found) > 10
    before = keep
    for masks in found:
        for name, mask in masks.items():
            assert not (mask & ~before[name]).any()
        before = masks
    counts = num_removed(found[-1])
    asked = {name: layer.num_pruned(0.6) for name, layer in which.items()}
    if allocation == "uniform":
        assert counts == asked
    elif which is ALL_CHANNEL:
        assert sum(asked.values()) - 8 < sum(counts.values()) <= sum(asked.values())
    else:
        assert sum(counts.values()) == sum(asked.values())
    for name, layer in which.items():
        if isinstance(layer.groups, PerChannel):
            assert len(set((~found[-1][name]).sum(1).tolist())) == 1


def test_the_lowest_of_all_targets_go_first() -> None:
    """Against a plain sort of all scores together."""
    keep = begin(ALL_LAYER, 0.4)
    plan = thinning(
        ALL_LAYER, build(allocation="proxy"), dict.fromkeys(SHAPES, 0.4), dict.fromkeys(SHAPES, 0.6)
    )
    generator = torch.Generator().manual_seed(3)
    scores = {n: torch.rand(m.shape, generator=generator) for n, m in keep.items()}
    got = plan.masks(keep, scores, NUM_STEPS // 2, NUM_STEPS)
    kept = torch.cat([scores[name][mask] for name, mask in keep.items()]).sort().values
    num_gone = sum(num_removed(got).values()) - sum(num_removed(keep).values())
    threshold = kept[num_gone - 1]
    for name, mask in got.items():
        assert torch.equal(mask, keep[name] & (scores[name] > threshold))


def test_channels_lose_their_lowest_at_their_mean_price() -> None:
    """One target per channel, dear in the mean, keeps all; a cheap one loses more."""
    both = {name: ALL_CHANNEL[name] for name in ("a", "b")}
    shares = dict.fromkeys(both, 0.0), dict.fromkeys(both, 0.3)
    plan = thinning(both, build(allocation="sensitivity"), *shares)
    keep = {name: torch.ones(SHAPES[name], dtype=torch.bool) for name in both}
    scores = {"a": torch.rand(8, 20) * 0.1, "b": torch.rand(6, 10) + 1}
    counts = num_removed(plan.masks(keep, scores, NUM_STEPS // 2, NUM_STEPS))
    assert counts == {"a": (48 + 18) // 8 * 8, "b": 0}


@pytest.mark.parametrize("num_steps", [2, 3, 10, 1000])
def test_it_ends_however_short_the_training(num_steps) -> None:
    plan = thinning(
        ALL_LAYER, build(allocation="proxy"), dict.fromkeys(SHAPES, 0.4), dict.fromkeys(SHAPES, 0.6)
    )
    keep = begin(ALL_LAYER, 0.4)
    for step in range(num_steps):
        if plan.is_due(step, num_steps):
            assert step > 0
            keep = plan.masks(keep, {n: m.float() for n, m in keep.items()}, step, num_steps)
    asked = sum(layer.num_pruned(0.6) for layer in ALL_LAYER.values())
    assert sum(num_removed(keep).values()) == asked
