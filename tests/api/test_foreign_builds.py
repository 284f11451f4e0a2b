"""Denoisers as people write them: all of the way works, or ends in a line before long work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune.denoiser.replay import run_call, tensors_in
from ditprune.method.reconstruction.admm import ADMM
from ditprune.runtime import swap
from ditprune.targets.wrapped import unwrapped
from foreign_builds import BUILDS, REFUSED

# `best` in a tenth of its time.
FEW = {
    "sparsity": 0.6, "preset": "best", "refinement": ditprune.Distill(num_steps=4, batch_size=4),
    "reconstruction": ADMM(num_steps=3, num_ramp_steps=2, num_support_steps=1),
}  # fmt: skip

READ_ONLY = {"weights_made_in_inference_mode"}


def made(name: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    denoiser, calls = BUILDS[name]()
    return denoiser.eval(), calls


def bits(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unwrapped(denoiser).state_dict().items()}


def predicted(denoiser: nn.Module, calls: list[Any]) -> list[Tensor]:
    return [tensor for call in calls for _, tensor in tensors_in(run_call(denoiser, call))]


def check_zeros(name: str, denoiser: nn.Module, outcome: ditprune.Outcome) -> None:
    """The zeros are in what the denoiser multiplies with, and all else has the bits it had."""
    (dense, calls), after = made(name), bits(denoiser)
    for key, tensor in bits(dense).items():
        if key.removesuffix(".weight") not in outcome.targets:
            assert torch.equal(after[key], tensor), key
    for target in outcome.targets.values():
        num_zero = int((after[f"{target.name}.weight"] == 0).sum())
        assert num_zero == target.num_zero >= target.num_pruned > 0, target.name
    dense.load_state_dict({f"{prefix_of(dense)}{n}": t for n, t in after.items()})
    for got, expected in zip(predicted(denoiser, calls), predicted(dense, calls), strict=True):
        assert torch.equal(got, expected)


def prefix_of(denoiser: nn.Module) -> str:
    return "" if unwrapped(denoiser) is denoiser else "_orig_mod."


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.filterwarnings("ignore")
def test_a_build_is_pruned_and_runs_sparse(name, monkeypatch) -> None:
    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)
    denoiser, calls = made(name)
    plan = ditprune.inspect(denoiser)
    stats = ditprune.calibrate(denoiser, calls)
    if name not in READ_ONLY:
        outcome = ditprune.prune_(denoiser, stats, sparsity=0.5)
        assert plan.targets.keys() >= outcome.targets.keys()
        check_zeros(name, denoiser, outcome)

    denoiser, calls = made(name)
    if name in REFUSED:
        before = bits(denoiser)
        with pytest.raises(ditprune.DitpruneError, match=REFUSED[name]) as refused:
            ditprune.prune_(denoiser, stats, batches=calls, **FEW)
        assert "\n" not in str(refused.value)
        assert all(torch.equal(tensor, before[n]) for n, tensor in bits(denoiser).items())
        return
    outcome = ditprune.prune_(denoiser, stats, batches=calls, **FEW)
    check_zeros(name, denoiser, outcome)

    before, outputs = bits(denoiser), predicted(denoiser, calls)
    decisions = ditprune.runtime.sparsify_(denoiser, calls[0], limit_s=0)
    linears = {n for n, m in unwrapped(made(name)[0]).named_modules() if isinstance(m, nn.Linear)}
    assert decisions.keys() == linears
    for got, expected in zip(predicted(denoiser, calls), outputs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    swapped = [n for n, decision in decisions.items() if not decision.reason]
    assert ditprune.runtime.desparsify_(denoiser) == swapped
    assert all(torch.equal(tensor, before[n]) for n, tensor in bits(denoiser).items())
