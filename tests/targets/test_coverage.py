"""What stays dense is said, by name and reason; figures of full-size models are by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn

from ditprune.targets import coverage
from ditprune.targets.coverage import EMBEDDER, MULTIHEAD, PER_HEAD, LeftOut, left_out
from ditprune.targets.discover import Target, discover, select
from ditprune.targets.writable import PARAMETRISED


def full_size(name: str) -> nn.Module:
    """A class of diffusers at its default size, without weights."""
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, name)()


def share(denoiser: nn.Module, parts: Iterable[Target | LeftOut]) -> float:
    """Of all its parameters."""
    return sum(p.num_weights for p in parts) / sum(p.numel() for p in denoiser.parameters())


def test_the_raw_experts_of_nucleus_are_nine_tenths_of_it() -> None:
    denoiser = full_size("NucleusMoEImageTransformer2DModel")
    targets = discover(denoiser)
    dense = left_out(denoiser, targets)
    experts = [part for name, part in dense.items() if ".experts." in name]
    assert {part.reason for part in experts} == {
        "a raw parameter of SwiGLUExperts, not of a Linear"
    }
    # 20 of 24 blocks have 128 experts: gate and up from 2,048 to 1,344 channels, and down again
    assert len(experts) == 20 * 2
    assert sum(part.num_weights for part in experts) == 20 * 128 * 3 * 2048 * 1344
    assert round(share(denoiser, experts), 2) == 0.93
    assert round(share(denoiser, targets.values()), 3) == 0.065


def test_the_embedders_of_a_dit_are_one_entry_for_each_block() -> None:
    denoiser = full_size("DiTTransformer2DModel")
    dense = left_out(denoiser, discover(denoiser))
    assert list(dense) == [f"transformer_blocks.{i}.norm1.emb" for i in range(28)]
    # two Linears, 256 → 1152 → 1152, and a table of 1,001 rows
    assert {(part.num_weights, part.reason) for part in dense.values()} == {
        ((256 + 1152 + 1001) * 1152, EMBEDDER)
    }


def test_the_convolutions_of_sana_that_mix_positions_are_named() -> None:
    denoiser = full_size("SanaTransformer2DModel")
    targets = discover(denoiser)
    dense = left_out(denoiser, targets)
    depthwise = {name: part for name, part in dense.items() if name.endswith("conv_depth")}
    assert len(depthwise) == 20
    assert {(p.num_weights, p.reason) for p in depthwise.values()} == {(11200 * 9, coverage.MIXES)}
    assert set(dense) - set(depthwise) == {
        f"transformer_blocks.{i}.scale_shift_table" for i in range(20)
    }
    assert round(share(denoiser, targets.values()), 2) == 0.97


def test_auxiliary_lists_are_one_entry_until_they_are_asked_for() -> None:
    denoiser = full_size("HunyuanVideoTransformer3DModel")
    path = "context_embedder.token_refiner.refiner_blocks"
    refiner = denoiser.get_submodule(path)
    num_weights = sum(p.numel() for p in refiner.parameters() if p.ndim >= 2)
    dense = left_out(denoiser, discover(denoiser))
    assert dense == {path: coverage.LeftOut(path, num_weights, coverage.AUXILIARY)}
    targets = discover(denoiser, auxiliary=True)
    assert left_out(denoiser, targets) == {}
    name = f"{path}.1.attn.to_q"
    part = coverage.LeftOut(name, targets[name].num_weights, coverage.NOT_CHOSEN)
    assert left_out(denoiser, select(targets, exclude=[name])) == {name: part}


class Block(nn.Module):
    """Something of everything."""

    def __init__(self, shared: nn.Parameter) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(64, 64), nn.Linear(64, 64)
        self.heads = nn.MultiheadAttention(64, 2)
        self.gate = nn.Linear(64, 4)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.mix = nn.Conv1d(4, 4, 3)
        self.places = nn.Embedding(5, 64)
        self.table = nn.Parameter(torch.zeros(6, 64))
        self.shared = shared
        self.norm = nn.LayerNorm(64)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))


def test_every_kind_of_matrix_has_its_reason() -> None:
    shared = nn.Parameter(torch.zeros(2, 3))
    denoiser = nn.ModuleList([Block(shared), Block(shared)])
    dense = left_out(denoiser, discover(denoiser))
    first = {n.removeprefix("0."): p for n, p in dense.items() if n.startswith("0.")}
    raw = "a raw parameter of Block, not of a Linear"
    assert {name: (part.num_weights, part.reason) for name, part in first.items()} == {
        "heads": (4 * 64 * 64, MULTIHEAD),
        "gate": (4 * 64, PER_HEAD),
        "up": (4 * 4 * 4, coverage.MIXES),
        "mix": (4 * 4 * 3, coverage.MIXES),
        "places": (5 * 64, EMBEDDER),
        "table": (6 * 64, raw),
        "shared": (6, raw),
        "normed": (64 + 64 * 64, PARAMETRISED),
    }
    assert {n.removeprefix("1.") for n in dense if n.startswith("1.")} == set(first) - {"shared"}


def test_targets_that_were_not_chosen_are_left_out_by_choice(tiny_dit) -> None:
    denoiser = tiny_dit()
    targets = discover(denoiser)
    chosen = select(targets, exclude=["*.to_q"])
    reasons = Counter(part.reason for part in left_out(denoiser, chosen).values())
    assert reasons == {coverage.NOT_CHOSEN: 3, EMBEDDER: 3}
