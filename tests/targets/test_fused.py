"""Fused copies of query, key and value: refused while they are called, ignored afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ditprune
from ditprune.errors import ModelError
from ditprune.targets.coverage import LEFT_BEHIND, left_out
from ditprune.targets.discover import discover
from tiny_denoisers import FAMILIES, Draw, exported

# Classes whose own `fuse_qkv_projections` works at these sizes, with one copy that it makes.
DELETING = {
    "FluxTransformer2DModel": "to_added_qkv",
    "Krea2Transformer2DModel": "to_qkv",
    "LTXVideoTransformer3DModel": "to_qkv",
    "WanTransformer3DModel": "to_kv",
    "WanAnimateTransformer3DModel": "to_added_kv",
}
KEEPING = {  # of the older attention class, which keeps the copies after unfusing
    "PixArtTransformer2DModel": "to_kv",
    "HunyuanDiT2DModel": "to_qkv",
    "SD3Transformer2DModel": "to_added_qkv",
    "AuraFlowTransformer2DModel": "to_qkv",
    "CogVideoXTransformer3DModel": "to_qkv",
}


@pytest.mark.parametrize("name", exported([*DELETING, *KEEPING]))
def test_fused_copies_are_refused_and_unfusing_repairs(name: str) -> None:
    copy = (DELETING | KEEPING)[name]
    family = FAMILIES[name]
    denoiser = family.make()
    targets = discover(denoiser)
    denoiser.fuse_qkv_projections()
    assert any(path.endswith(f".{copy}") for path, _ in denoiser.named_modules())
    calls = [family.call(Draw(1))]
    for refusing in (
        lambda: discover(denoiser),
        lambda: ditprune.calibrate(denoiser, calls),
        lambda: ditprune.prune_(denoiser, saliency="magnitude"),
    ):
        with pytest.raises(ModelError, match=r"is a fused copy.*unfuse_qkv_projections\(\)"):
            refusing()
    denoiser.unfuse_qkv_projections()
    assert discover(denoiser) == targets
    stats = ditprune.calibrate(denoiser, calls)
    assert stats.never_called == ()
    assert set(ditprune.prune_(denoiser, stats).targets) == set(targets)


@pytest.mark.parametrize("name", KEEPING)
def test_copies_that_unfusing_leaves_are_said_to_stay_dense(name: str) -> None:
    denoiser = FAMILIES[name].make()
    modules = {path for path, _ in denoiser.named_modules()}
    denoiser.fuse_qkv_projections()
    denoiser.unfuse_qkv_projections()
    dense = left_out(denoiser, discover(denoiser))
    copies = {path for path, _ in denoiser.named_modules()} - modules
    assert copies
    assert {path for path, part in dense.items() if part.reason == LEFT_BEHIND} == copies


def test_projections_beside_a_linear_of_another_size_are_no_copy() -> None:
    """Self-attention with one Linear beside cross-attention with three."""
    block = nn.Module()
    block.to_q, block.to_k, block.to_v = (nn.Linear(8, 8) for _ in range(3))
    block.to_qkv = nn.Linear(8, 16)
    block.to_kv = nn.Linear(4, 16)
    assert len(discover(nn.ModuleList([block]))) == 5


def test_fused_copies_are_found_without_weights() -> None:
    with torch.device("meta"):
        block = nn.Module()
        block.to_q, block.to_k, block.to_v = (nn.Linear(8, 8) for _ in range(3))
        block.to_qkv = nn.Linear(8, 24)
        denoiser = nn.ModuleList([block])
    with pytest.raises(ModelError, match=r"^0: to_qkv is a fused copy of to_q, to_k, to_v"):
        discover(denoiser)
