"""Blocks where globs say they are: found, refused, calibrated, pruned and updated."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import ditprune
from ditprune.checkpoints.statistics_file import read_statistics_file, save_statistics
from ditprune.errors import RecipeError, StatisticsError, TargetError
from ditprune.method.distill import Distill
from ditprune.method.words import build_each
from ditprune.runtime import sparsify_
from ditprune.targets.blocks import find_blocks
from ditprune.targets.coverage import left_out
from ditprune.targets.discover import discover

WIDTH = 32
ALL = ("double_blocks.*", "single_blocks.*")


class Double(nn.Module):
    """Attention by Linears whose names structure does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.img_attn_qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.img_attn_proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.img_attn_qkv(x).chunk(3, -1)
        x = x + self.img_attn_proj(scaled_dot_product_attention(q, k, v))
        return x + self.mlp(x)


class Single(nn.Module):
    """One wide Linear before and one after, as in the original FLUX."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(WIDTH, 5 * WIDTH)
        self.linear2 = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, rest = self.linear1(x).split([WIDTH, WIDTH, WIDTH, 2 * WIDTH], -1)
        return x + self.linear2(torch.cat([scaled_dot_product_attention(q, k, v), rest], -1))


class Denoiser(nn.Module):
    """As a user may write it: two lists, found or named."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.t_embedder = nn.Sequential(nn.Linear(1, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.double_blocks = nn.ModuleList([Double(), Double()])
        self.single_blocks = nn.ModuleList([Single(), Single()])
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = x + self.t_embedder(t[:, None])[:, None]
        for block in (*self.double_blocks, *self.single_blocks):
            hidden = block(hidden)
        return self.out(hidden)


class Head(nn.Module):
    """Blocks that are found, and a heavier head of residual MLPs behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Single()])
        self.head = nn.Module()
        self.head.res_blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 99), nn.Linear(99, WIDTH)) for _ in range(3)
        )


class Behind(nn.Module):
    """Blocks that are found, and as many that structure does not tell, of another owner."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Single()])
        self.inner = nn.Module()
        self.inner.blocks = nn.ModuleList(Flat() for _ in range(8))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in (*self.inner.blocks, *self.blocks):
            x = block(x, t) if isinstance(block, Flat) else block(x)
        return x


class Flat(nn.Module):
    """A flat list of Linears, of which structure says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) * (1 + t[:, None, None])
        return x


def calls(num_calls: int = 4) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(7)
    return [
        {"x": torch.randn(4, 8, WIDTH, generator=draw), "t": torch.full((4,), i / num_calls)}
        for i in range(num_calls)
    ]


def test_the_outermost_modules_that_match_are_the_blocks() -> None:
    blocks = find_blocks(Denoiser(), ("*blocks.*", "*.mlp"))
    assert [(b.path, b.list_path, b.depth, b.auxiliary) for b in blocks] == [
        (f"{kind}.{i}", kind, i, False) for kind in ("double_blocks", "single_blocks")
        for i in range(2)
    ]  # fmt: skip
    (whole,) = find_blocks(Denoiser(), ("double_blocks",))
    assert (whole.path, whole.list_path, whole.depth) == ("double_blocks", "", 0)
    assert [b.depth for b in find_blocks(Denoiser(), ("double_blocks.1", "out"))] == [0, 0]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_layer_in_them_is_a_target(device: str) -> None:
    with torch.device(device):
        denoiser, flat = Denoiser(), Flat()
    targets = discover(denoiser, blocks=ALL)
    assert len(targets) == 2 * 4 + 2 * 2
    assert next(iter(targets)) == "double_blocks.0.img_attn_qkv"
    assert left_out(denoiser, targets, ALL) == {}
    assert list(discover(flat, blocks=("layers.*",))) == ["layers.0", "layers.1", "layers.2"]


def test_globs_that_name_nothing_are_refused_with_what_is_near() -> None:
    with pytest.raises(TargetError, match=r"'double_block\.\*'.*did you mean 'double_blocks\.\*'"):
        discover(Denoiser(), blocks=("double_block.*", "single_blocks.*"))
    with pytest.raises(TargetError, match=r"no layer to prune in the 2 modules.*mlp\.1"):
        discover(Denoiser(), blocks=("double_blocks.*.mlp.1",))
    assert len(discover(Denoiser(), blocks=("double_blocks.*.mlp.1", "out"))) == 1


@pytest.mark.parametrize(
    ("make", "part", "glob"),
    [(Behind, "inner", "inner.blocks.*"), (Head, "head", "head.res_blocks.*")],
)
def test_a_large_part_outside_is_an_entry_and_one_warning(make, part, glob) -> None:
    denoiser = make()
    with pytest.warns(UserWarning, match="lie outside every block") as caught:
        plan = ditprune.inspect(denoiser)
    assert len(caught) == 1
    assert glob in str(caught[0].message)
    entry = plan.left_out[part]
    module = denoiser.get_submodule(part)
    assert entry.num_weights == sum(p.numel() for p in module.parameters() if p.ndim == 2)
    assert f"--blocks '{glob}'" in entry.reason
    found_list = "blocks.*"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = ditprune.inspect(denoiser, blocks=(found_list, glob))
    assert part not in plan.left_out
    assert plan.recipe.blocks == (found_list, glob)


def test_a_small_part_outside_is_none() -> None:
    denoiser = Behind()
    denoiser.blocks.extend(Single() for _ in range(12))
    assert left_out(denoiser, discover(denoiser)) == {}


def test_calibration_warns_too_and_statistics_keep_the_globs(tmp_path) -> None:
    with pytest.warns(UserWarning, match="lie outside every block"):
        stats = ditprune.calibrate(Behind(), calls())
    assert stats.blocks == ()
    stats = ditprune.calibrate(Denoiser(), calls(), blocks=ALL)
    save_statistics({"any": stats}, tmp_path / "s")
    (again,) = read_statistics_file(tmp_path / "s").values()
    assert again.blocks == ALL
    outcome = ditprune.prune_(Denoiser(), again)
    assert len(outcome.targets) == 12
    assert outcome.recipe.blocks == ALL
    assert ditprune.prune_(Denoiser(), again, blocks=ALL) == outcome
    assert ditprune.prune_(Denoiser(), again, recipe=outcome.recipe) == outcome
    part = ditprune.prune_(Denoiser(), again, blocks="single_blocks.*")
    assert len(part.targets) == 4


def test_statistics_of_other_blocks_are_refused() -> None:
    stats = ditprune.calibrate(Denoiser(), calls(), blocks=ALL[1])
    for given, said in ((stats, r"made with blocks single_blocks\.\*"),
                        (replace(stats, blocks=()), "made with the blocks as found")):  # fmt: skip
        with pytest.raises(StatisticsError, match=f"{said}.*8 of 12.*calibrate with these"):
            ditprune.prune_(Denoiser(), given, blocks=ALL)
    with pytest.raises(StatisticsError, match="made from other weights"):
        ditprune.prune_(Denoiser(seed=1), stats)
    with pytest.raises(RecipeError, match="auxiliary and blocks"):
        ditprune.prune_(Denoiser(), stats, auxiliary=True)


WORDS: list[dict[str, Any]] = [
    {"pattern": "2:4"},
    {"sparsity": 0.7, "preset": "best", "refinement": Distill(num_steps=4)},
]


@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize(("make", "blocks"), [(Denoiser, ALL), (Flat, ("layers.*",))])
def test_all_recipes_work_on_them(make, blocks, words) -> None:
    denoiser = make()
    stats = ditprune.calibrate(denoiser, calls(), blocks=blocks)
    batches = calls() if "preset" in words else None
    outcome = ditprune.prune_(denoiser, stats, batches=batches, **words)
    assert list(outcome.targets) == list(discover(make(), blocks=blocks))
    for name, target in outcome.targets.items():
        zeros = denoiser.get_submodule(name).weight == 0
        assert zeros.sum() == target.num_pruned > 0
        if "pattern" in words:
            assert (zeros.reshape(-1, 4).sum(1) == 2).all()


def test_two_denoisers_have_blocks_of_their_own() -> None:
    denoisers = {"transformer": Denoiser(), "transformer_2": Flat()}
    recipes = build_each(denoisers, blocks={"transformer": ALL, "transformer_2": "layers.*"})
    for name, denoiser in denoisers.items():
        stats = ditprune.calibrate(denoiser, calls(), blocks=recipes[name].blocks)
        outcome = ditprune.prune_(denoiser, stats, recipe=recipes[name])
        assert {target.block.split(".")[0] for target in outcome.targets.values()} == {
            glob.removesuffix(".*") for glob in recipes[name].blocks
        }


def test_only_layers_in_the_blocks_are_decided_on_for_running_sparse() -> None:
    denoiser = Denoiser()
    assert set(sparsify_(denoiser, blocks="single_blocks.*")) == {
        f"single_blocks.{i}.linear{j}" for i in range(2) for j in (1, 2)
    }
    with pytest.raises(TargetError, match="matches none"):
        sparsify_(denoiser, blocks="blocks.*")
