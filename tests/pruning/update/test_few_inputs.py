"""A layer that saw only a few inputs is not fitted to them: it is pruned by its saliency, told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune.method.statistics.gram import FEW_INPUTS, has_few_inputs
from foreign_builds import WIDTH, Block, Denoiser, noise


class Modulated(Denoiser):
    """Its first layer sees the time, the others see tokens."""

    class block(Block):  # noqa: N801 (the class of its blocks)
        def __init__(self) -> None:
            super().__init__()
            self.modulation = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = torch.sin(t[:, None] * torch.arange(1.0, WIDTH + 1) * 9)
        shift = self.blocks[0].modulation(waves)
        return self.trunk(x + shift[:, None])


def batches(num_timesteps: int) -> list[dict[str, Tensor]]:
    times = torch.linspace(0.1, 0.9, num_timesteps)
    return [{"x": noise(4, 6, WIDTH), "t": t.repeat(4)} for t in times for _ in range(2)]


@pytest.mark.parametrize("pattern", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("method", ["admm", "obs"])
def test_modulation_of_four_timesteps_is_as_without_a_reconstruction(method, pattern) -> None:
    denoiser = Modulated()
    dense, calls = {n: p.clone() for n, p in denoiser.state_dict().items()}, batches(4)
    stats = ditprune.calibrate(denoiser, calls)
    name = "blocks.0.modulation"
    words = {"reconstruction": method, "mask": "reconstruction"} | pattern
    with pytest.warns(UserWarning, match=rf"1 of 5 layers see fewer than 5 inputs.*{name}"):
        outcome = ditprune.prune_(denoiser, stats, batches=calls, **words)
    updated = {n: p.clone() for n, p in denoiser.state_dict().items()}
    denoiser.load_state_dict(dense)
    plain = ditprune.prune_(denoiser, stats, **pattern)
    assert torch.equal(updated[f"{name}.weight"], denoiser.state_dict()[f"{name}.weight"])
    assert outcome.targets[name].num_pruned == plain.targets[name].num_pruned
    other = "blocks.0.mlp.0.weight"
    assert not torch.equal(updated[other], denoiser.state_dict()[other])


@pytest.mark.filterwarnings("error")
def test_modulation_of_many_timesteps_is_reconstructed() -> None:
    denoiser, calls = Modulated(), batches(FEW_INPUTS + 2)
    stats = ditprune.calibrate(denoiser, calls)
    ditprune.prune_(denoiser, stats, batches=calls, reconstruction="admm")


@pytest.mark.parametrize("num_inputs", [1, 4, 5, 40])
def test_inputs_are_counted_by_what_differs(num_inputs) -> None:
    """However often they come, and however unlike the channels are in size."""
    inputs = torch.randn(num_inputs, 24) * torch.logspace(0, 4, 24)
    repeated = inputs.repeat(5, 1)
    assert has_few_inputs(repeated.T @ repeated) == (num_inputs < FEW_INPUTS)
