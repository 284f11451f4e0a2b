"""Multiply-accumulates: the published figure of DiT-XL/2, and a layer counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ditprune.calls import Call
from ditprune.evaluation.accounting import count_macs
from ditprune.targets.discover import discover


def meta_dit(sample_size: int) -> tuple[nn.Module, Call]:
    """DiT-XL/2 without weights, and a call for one image."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        denoiser = DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8,
            num_layers=28, sample_size=sample_size, patch_size=2, num_embeds_ada_norm=1000,
        )  # fmt: skip
        zero = torch.zeros(1, dtype=torch.long)
        sample = torch.empty(1, 4, sample_size, sample_size)
    return denoiser, Call((sample,), {"timestep": zero, "class_labels": zero})


@pytest.mark.parametrize(("sample_size", "published"), [(32, 118.64), (64, 524.60)])
def test_dit_xl_2_takes_what_its_paper_says(sample_size, published) -> None:
    """Table 4 of Peebles and Xie (2023), at 256² and 512²; diffusers embeds in each block."""
    denoiser, call = meta_dit(sample_size)
    targets = discover(denoiser)
    macs = count_macs(denoiser, call, targets)
    assert macs.total / 1e9 == pytest.approx(published, rel=1e-3)
    num_tokens = (sample_size // 2) ** 2
    by_hand = 28 * (12 * 1152**2 * num_tokens + 6 * 1152**2)
    assert sum(macs.targets.values()) == by_hand


def test_zeros_save_their_share_of_a_target() -> None:
    denoiser, call = meta_dit(32)
    macs = count_macs(denoiser, call, discover(denoiser))
    name, own = next(iter(macs.targets.items()))
    assert macs.effective({}) == macs.total
    assert macs.effective({name: 0.25}) == macs.total - 0.25 * own
    assert macs.effective(dict.fromkeys(macs.targets, 1.0)) == (
        macs.total - sum(macs.targets.values())
    )


def test_a_real_call_counts_as_one_on_meta(tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    (batch,) = batches(denoiser, 1)
    call = Call((), batch)
    real = count_macs(denoiser, call, discover(denoiser))
    hollow = count_macs(denoiser.to("meta"), call.map(lambda leaf: leaf.to("meta")),
                        discover(denoiser))  # fmt: skip
    assert real == hollow
    assert all(own > 0 for own in real.targets.values())
    assert not any(layer._forward_hooks for layer in denoiser.modules())


def test_a_pointwise_convolution_multiplies_every_pixel() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False))
    macs = count_macs(layer, Call((torch.zeros(2, 3, 4, 6),)), ["0"])
    assert macs.total == macs.targets["0"] == 2 * 4 * 6 * 3 * 5
