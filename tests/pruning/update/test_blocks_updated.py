"""Weights that are updated block by block are those that whole calls of the denoiser give."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

import ditprune
from ditprune.calls import Call
from ditprune.errors import StatisticsError
from ditprune.method.words import build
from ditprune.progress import silent
from ditprune.pruning.update.blockwise.in_memory import updated_in_memory
from ditprune.pruning.update.prepared import UpdateInputs
from ditprune.pruning.update.update import updated_whole
from ditprune.targets.discover import discover
from foreign_builds import BUILDS
from tiny_denoisers import FAMILIES, Draw

RECIPES: dict[str, dict[str, Any]] = {
    "fast": {"preset": "fast", "sparsity": 0.6},
    "fast 2:4": {"preset": "fast", "pattern": "2:4"},
    "of layers": {"reconstruction": "admm", "mask": "reconstruction", "allocation": "owl"},
    "by saliency": {"reconstruction": "obs", "timestep_weighting": "log-decrease"},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*layers see fewer than")
NAMES = {
    "DiT": "DiTTransformer2DModel", "Flux": "FluxTransformer2DModel",
    "SD3": "SD3Transformer2DModel", "Wan": "WanTransformer3DModel",
}  # fmt: skip
SCARCE = 1  # bytes, so that every Gram is taken alone


def inputs_of(model: str, max_gram_bytes: int | None = None) -> UpdateInputs:
    family = next(family for family in FAMILIES.values() if family.name == NAMES[model])
    denoiser = family.make().eval()
    calls = [Call((), family.call(Draw(seed)), place=seed / 3) for seed in range(3)]
    stats = ditprune.calibrate(denoiser, calls).denoisers["transformer"]
    targets = {n: t for n, t in discover(denoiser).items() if n not in stats.never_called}
    return UpdateInputs(denoiser, targets, stats, calls, silent, max_gram_bytes)


@pytest.mark.parametrize("model", NAMES)
def test_blocks_give_what_whole_calls_give(model: str) -> None:
    inputs = inputs_of(model)
    state = {name: tensor.clone() for name, tensor in inputs.denoiser.state_dict().items()}
    for words in RECIPES.values():
        check_same(inputs, words)
    for name, tensor in inputs.denoiser.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(p.requires_grad and p.grad is None for p in inputs.denoiser.parameters())


@pytest.mark.parametrize("words", [RECIPES["fast"], RECIPES["of layers"]], ids=["fast", "layers"])
def test_each_gram_may_be_taken_alone(words: dict[str, Any]) -> None:
    """By a pass through its block; with `fast` once on the way back, and once forwards."""
    check_same(inputs_of("DiT"), words, SCARCE)


def check_same(
    inputs: UpdateInputs, words: dict[str, Any], max_gram_bytes: int | None = None
) -> None:
    recipe = build(**words)
    expected, _ = updated_whole(inputs, recipe, None, None)
    done = updated_in_memory(replace(inputs, max_gram_bytes=max_gram_bytes), recipe)
    assert done is not None
    updates = done.updates
    assert updates.keys() == expected.keys()
    for name, update in updates.items():
        smallest = 1e-6 * float(expected[name].weight.abs().max())
        torch.testing.assert_close(update.weight, expected[name].weight, rtol=1e-4, atol=smallest)
        assert update.sparsity == expected[name].sparsity, (words, name)


def test_blocks_that_do_not_chain_are_told_and_taken_by_whole_calls(caplog) -> None:
    denoiser, calls = BUILDS["lists_of_lists"]()  # its parts are called, and not its blocks
    stats = ditprune.calibrate(denoiser, calls)
    with caplog.at_level(logging.INFO, "ditprune"):
        outcome = ditprune.prune_(
            denoiser, stats, batches=calls, preset="fast", progress=False, max_gram_bytes=SCARCE
        )
    assert outcome.sparsity == pytest.approx(0.5, abs=1e-3)
    (line,) = [r.getMessage() for r in caplog.records if "block by block" in r.getMessage()]
    assert line == "Build: not taken block by block: a call does not reach blocks.0"


def test_inputs_that_are_not_finite_are_refused() -> None:
    inputs = inputs_of("DiT")
    inputs.calls[1].sample()[0, 0, 0, 0] = torch.nan  # neither the first of them nor the last
    with pytest.raises(StatisticsError, match="NaN or Inf"):
        updated_in_memory(inputs, build(**RECIPES["of layers"]))
