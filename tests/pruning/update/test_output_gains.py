"""What a layer's output weighs in the predicted noise, and in no variance beside it."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel

from ditprune.calls import Call
from ditprune.pruning.update.output_grams import output_gains
from ditprune.targets.discover import discover

CHANNELS = 4


def tiny(out_channels: int) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=CHANNELS,
        out_channels=out_channels, num_layers=2, sample_size=8, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip


def test_a_predicted_variance_does_not_count() -> None:
    """As DiT-XL/2 and PixArt-Σ predict one: the same gains as the model without that half."""
    both, noise = tiny(2 * CHANNELS), tiny(CHANNELS)
    state = both.state_dict()
    for name in ("proj_out_2.weight", "proj_out_2.bias"):
        state[name] = state[name].unflatten(0, (-1, 2 * CHANNELS))[:, :CHANNELS].flatten(0, 1)
    noise.load_state_dict(state)
    call = Call((), {
        "hidden_states": torch.randn(2, CHANNELS, 8, 8), "timestep": torch.tensor([5, 900]),
        "class_labels": torch.tensor([1, 3]),
    })  # fmt: skip
    names = list(discover(noise))
    expected = output_gains(noise, names, [call])
    assert all(gain > 0 for gain in expected.values())
    assert output_gains(both, names, [call]) == pytest.approx(expected, rel=1e-4)
