"""Layers that one forward calls twice, for some tokens only, or for none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ditprune
from tiny_denoisers import FAMILIES, Draw

SEEDS = (1, 2, 3)


def inputs_of(family_name: str, layer_name: str) -> tuple[ditprune.Statistics, list[Tensor]]:
    """The statistics of three calls, and what entered one layer in each of its own."""
    family = FAMILIES[family_name]
    denoiser = family.make()
    seen: list[Tensor] = []
    layer = denoiser.get_submodule(layer_name)
    calls = [family.call(Draw(seed)) for seed in SEEDS]
    stats = ditprune.calibrate(denoiser, calls)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    with torch.no_grad():
        for call in calls:
            denoiser(**call)
    handle.remove()
    return stats, seen


@pytest.mark.parametrize(
    ("family_name", "layer_name", "num_tokens"),
    [
        # 16 image and 6 text tokens of two samples, one after the other
        ("CogView4Transformer2DModel", "transformer_blocks.0.ff.net.0.proj", [32, 12]),
        ("GlmImageTransformer2DModel", "transformer_blocks.1.ff.net.2", [32, 12]),
        # only the second block has one feed-forward for both
        ("EasyAnimateTransformer3DModel", "transformer_blocks.1.ff.net.2", [64, 12]),
    ],
)
def test_the_norm_is_over_all_calls_of_a_forward(family_name, layer_name, num_tokens) -> None:
    stats, seen = inputs_of(family_name, layer_name)
    assert [one[..., 0].numel() for one in seen] == num_tokens * len(SEEDS)
    tokens = torch.cat([one.flatten(0, -2) for one in seen])
    torch.testing.assert_close(
        stats.column_norm(layer_name).double(), tokens.norm(dim=0), rtol=1e-5, atol=1e-6
    )
    assert stats.num_tokens(layer_name) == len(tokens)
    assert stats.num_inputs[layer_name] == 2 * stats.num_calls == 2 * len(SEEDS)
    last = seen[-1].flatten(0, -2).norm(dim=0)
    assert (tokens.norm(dim=0) > 1.1 * last).all()


def test_routed_experts_remember_the_tokens_that_were_sent_to_them() -> None:
    family = FAMILIES["HiDreamImageTransformer2DModel"]
    denoiser = family.make()
    stats = ditprune.calibrate(denoiser, [family.call(Draw(seed)) for seed in SEEDS])
    at = "double_stream_blocks.0.block.ff_i"
    routed = [stats.num_tokens(f"{at}.experts.{i}.w1") for i in range(4)]
    assert sum(routed) == 2 * stats.num_tokens(f"{at}.shared_experts.w1")  # two experts each
    assert len(set(routed)) > 1


def test_an_expert_without_tokens_is_never_called_and_stays_dense(same_bits) -> None:
    family = FAMILIES["HiDreamImageTransformer2DModel"]
    denoiser = family.make()
    feed_forward = denoiser.double_stream_blocks[0].block.ff_i

    def avoid_last(_gate: nn.Module, _args: object, output: tuple[Tensor, ...]) -> object:
        index, weight, loss = output
        return torch.where(index == 3, 0, index), weight, loss

    handle = feed_forward.gate.register_forward_hook(avoid_last)
    with pytest.warns(UserWarning, match="3 of 94 targets were never called"):
        stats = ditprune.calibrate(denoiser, [family.call(Draw(seed)) for seed in SEEDS])
    handle.remove()
    expert = "double_stream_blocks.0.block.ff_i.experts.3"
    assert stats.never_called == tuple(f"{expert}.{leaf}" for leaf in ("w1", "w2", "w3"))
    before = feed_forward.experts[3].w1.weight.detach().clone()
    outcome = ditprune.prune_(denoiser, stats)
    assert set(outcome.skipped) == set(stats.never_called)
    same_bits(feed_forward.experts[3].w1.weight.detach(), before)


def test_a_call_without_rows_adds_nothing() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k, self.mix = nn.Linear(6, 6), nn.Linear(6, 6), nn.Conv1d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.to_k(x[:0])
            self.to_q(x[:0])
            return self.to_q(x).sum() + self.mix(x[:0].mT).sum() + self.mix(x.mT).sum()

    denoiser = nn.Module()
    denoiser.blocks = nn.ModuleList([Block()])
    denoiser.forward = lambda x: denoiser.blocks[0](x)
    x = torch.randn(4, 5, 6)
    stats = ditprune.calibrate(denoiser, [{"x": x}])
    for leaf in ("to_q", "mix"):
        torch.testing.assert_close(
            stats.column_norm(f"blocks.0.{leaf}"), x.reshape(-1, 6).norm(dim=0)
        )
    assert stats.num_tokens("blocks.0.to_k") == 0
    outcome = ditprune.prune_(denoiser, stats)
    assert outcome.skipped == {"blocks.0.to_k": "its calibration inputs are all zero"}
