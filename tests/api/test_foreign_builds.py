"""Denoisers as people write them: all of the way works, or ends in a line before long work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune.calls import Call
from ditprune.denoiser.replay import run_call, tensors_in
from ditprune.method.reconstruction.admm import ADMM
from ditprune.pruning.update import budgets
from ditprune.runtime import swap
from ditprune.targets.wrapped import unwrapped
from foreign_builds import BUILDS, FLAT, REFUSED, flat

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
    copies = [Call.of(call).map(copied) for call in calls]  # a forward may write into them
    return [tensor for call in copies for _, tensor in tensors_in(run_call(denoiser, call))]


def copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


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
    monkeypatch.setattr(budgets, "LEVELS", (0.2, 0.6, 0.97))
    denoiser, calls = made(name)
    plan = ditprune.inspect(denoiser)
    on_meta = ditprune.inspect(made(name)[0].to("meta"))
    assert on_meta.targets.keys() == plan.targets.keys()
    assert on_meta.left_out == plan.left_out
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


@pytest.mark.filterwarnings("ignore:.*targets were never called")
@pytest.mark.parametrize(
    ("name", "reader", "with_call"),
    [
        ("the_encoder_of_torch", "TransformerEncoderLayer", False),
        ("the_encoder_of_torch", "TransformerEncoderLayer", True),
        ("the_attention_of_torch", "MultiheadAttention", False),
        ("projections_that_are_read_and_not_called", "Stacked", True),
    ],
)
def test_layers_that_are_read_and_not_called_stay_dense(name, reader, with_call, monkeypatch):
    """Else each call would unpack them: faster in the timings, slower in the whole."""
    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)
    denoiser, calls = made(name)
    ditprune.prune_(denoiser, saliency="magnitude", sparsity=0.7)
    decisions = ditprune.runtime.sparsify_(denoiser, calls[0] if with_call else None, limit_s=0)
    names = {"Stacked": ("to_q", "to_k"), "MultiheadAttention": ("out_proj",)}
    leaves = names.get(reader, ("linear1", "linear2"))
    reasons = [d.reason for n, d in decisions.items() if n.endswith(leaves)]
    assert reasons
    assert all(f"{reader} reads" in r or r == "never called" for r in reasons)


def test_a_layer_that_is_called_and_read_is_swapped_back(monkeypatch) -> None:
    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.to_q(x) / self.to_q.weight.norm()

    denoiser, x = Normed(), torch.randn(2, 16)
    ditprune.prune_(denoiser, saliency="magnitude", sparsity=0.8, blocks="to_q")
    before = bits(denoiser)
    decisions = ditprune.runtime.sparsify_(denoiser, {"x": x}, limit_s=0)
    assert "Normed reads its weight" in decisions["to_q"].reason
    assert type(denoiser.to_q) is nn.Linear
    assert torch.equal(denoiser.to_q.weight, before["to_q.weight"])


def test_a_heavier_encoder_inside_is_told() -> None:
    denoiser, _ = made("a_heavier_text_encoder_inside")
    with pytest.warns(UserWarning, match=r"text_encoder\.layers hold more weights.*--blocks"):
        plan = ditprune.inspect(denoiser)
    assert {name.split(".")[0] for name in plan.targets} == {"blocks"}
    assert "text_encoder.layers" in plan.left_out


def test_layers_that_no_gradient_reaches_keep_their_reconstruction() -> None:
    denoiser, calls = made("experts_without_gradients")
    stats = ditprune.calibrate(denoiser, calls)
    outcome = ditprune.prune_(denoiser, stats, batches=calls, **FEW)
    assert outcome.targets["blocks.0.mlp.0"].num_pruned > 0
    total = sum(target.num_pruned for target in outcome.targets.values())
    assert total == round(0.6 * outcome.num_weights)


def test_batches_that_are_used_up_are_called_so() -> None:
    denoiser, calls = made("a_mapping_out")
    generator = (call for call in calls)
    stats = ditprune.calibrate(denoiser, generator)
    with pytest.raises(ditprune.DitpruneError, match="keep the calls in a list"):
        ditprune.prune_(denoiser, stats, batches=generator, **FEW)


@pytest.mark.parametrize("names", FLAT, ids=" ".join)
def test_attention_is_told_by_the_names_of_its_linears(names) -> None:
    denoiser = nn.Module()
    denoiser.layers = nn.ModuleList([flat(*names)(), nn.Identity(), flat(*names)()])
    targets = ditprune.inspect(denoiser).targets
    assert {n.split(".", 2)[2] for n in targets} == {*names, "mlp.0", "mlp.2"}
    assert len(targets) == 2 * (len(names) + 2)


def test_parallel_linears_are_named() -> None:
    class ColumnParallelLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4))

    denoiser = nn.Module()
    denoiser.blocks = nn.ModuleList([ColumnParallelLinear()])
    with pytest.raises(ditprune.DitpruneError, match=r"ColumnParallelLinear are no nn\.Linear"):
        ditprune.inspect(denoiser)
