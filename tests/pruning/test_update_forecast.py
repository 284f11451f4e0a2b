"""What updating takes, from shapes alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ditprune
from ditprune.calls import Call
from ditprune.errors import ModelError
from ditprune.method.distill import Distill
from ditprune.method.words import build
from ditprune.pruning.forecast import forecast_updates
from ditprune.pruning.row_cost import row_cost
from ditprune.targets.discover import discover


@pytest.fixture(scope="module")
def pixart() -> nn.Module:
    """PixArt-Σ's transformer at 1024², without weights."""
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        return PixArtTransformer2DModel(
            sample_size=128, num_layers=28, attention_head_dim=72, in_channels=4, out_channels=8,
            patch_size=2, attention_bias=True, num_attention_heads=16, cross_attention_dim=1152,
            caption_channels=4096, use_additional_conditions=False, norm_type="ada_norm_single",
            norm_elementwise_affine=False, norm_eps=1e-6,
        )  # fmt: skip


def pixart_call(batch: int = 2) -> Call:
    return Call((), {
        "hidden_states": torch.zeros(batch, 4, 128, 128),
        "encoder_hidden_states": torch.zeros(batch, 300, 4096),
        "timestep": torch.zeros(batch, dtype=torch.long),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    })  # fmt: skip


def test_a_row_costs_what_its_linears_and_its_attention_cost(pixart) -> None:
    """By hand: 28 blocks of width 1152, 4,096 image tokens, 300 of text."""
    one = row_cost(pixart, discover(pixart), pixart_call())
    image, text, width = 4096, 300, 1152
    linears = image * (6 * width**2 + 8 * width**2) + text * 2 * width**2
    attention = 2 * image * image * width + 2 * image * text * width
    assert one.num_operations == pytest.approx(2 * 28 * (linears + attention), rel=0.02)
    assert one.num_tokens["transformer_blocks.3.attn1.to_q"] == image
    assert one.num_tokens["transformer_blocks.3.attn2.to_k"] == text
    assert one.num_operations == row_cost(pixart, discover(pixart), pixart_call(4)).num_operations


def test_calls_in_another_dtype_than_the_skeleton_cost_the_same(pixart) -> None:
    def halved(leaf):
        is_floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.bfloat16() if is_floating else leaf

    assert row_cost(pixart, {}, pixart_call().map(halved)) == row_cost(pixart, {}, pixart_call())


def test_every_stage_is_counted_where_the_recipe_has_it(pixart) -> None:
    targets = discover(pixart)
    one = row_cost(pixart, targets, pixart_call())

    def stages(**words: object) -> dict[str, float]:
        return dict(forecast_updates(targets, build(**words), one, 256, 610_000_000).num_operations)

    assert stages() == {}
    assert stages(reconstruction="obs").keys() == {"Grams", "layers"}
    assert stages(allocation="sensitivity").keys() == {"budgets"}
    assert stages(allocation="proxy").keys() == {"Grams", "budgets"}
    best = stages(preset="best")
    assert best.keys() == {"Grams", "budgets", "layers", "refinement"}
    assert best["refinement"] == 400 * 32 * 4 * one.num_operations
    sensitivity = stages(preset="best", allocation="sensitivity")
    assert best["budgets"] < sensitivity["budgets"] / 20
    short = stages(preset="best", refinement=Distill(num_steps=100))
    assert short["refinement"] == best["refinement"] / 4


WHOLE: list[dict[str, object]] = [
    {"reconstruction": "obs", "packages": 2},
    {"reconstruction": "obs", "allocation": "sensitivity"},
    {"allocation": "proxy"},
]
WHOLE_IF_AT_ONCE: list[dict[str, object]] = [
    {"reconstruction": "obs"}, {"reconstruction": "obs", "allocation": "owl"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "max_gram_bytes"),
    [(w, size) for w in WHOLE for size in (10**5, None)] + [(w, None) for w in WHOLE_IF_AT_ONCE],
    ids=str,
)
def test_the_forecast_counts_the_passes_of_the_run(
    words, max_gram_bytes, tiny_dit, tiny_stats, batches
) -> None:
    denoiser, passes = tiny_dit(), []
    calls = [Call.of(batch) for batch in batches(denoiser, 4)]

    def progress(what: str, done: int, _total: int) -> None:
        if what.startswith("collecting Grams") and done == 1:
            passes.append(what)

    ditprune.prune_(
        denoiser,
        tiny_stats,
        batches=calls,
        max_gram_bytes=max_gram_bytes,
        progress=progress,
        **words,
    )
    targets, recipe = discover(denoiser), build(**words)
    one = row_cost(tiny_dit().to("meta"), targets, calls[0])
    assert (
        forecast_updates(targets, recipe, one, 8, 0, max_gram_bytes).num_passes == len(passes) > 0
    )
    assert recipe.needs_grams


def test_memory_is_that_of_the_copies_that_are_kept(pixart) -> None:
    targets, size = discover(pixart), 610_000_000
    one = row_cost(pixart, targets, pixart_call())
    num_weights = sum(target.num_weights for target in targets.values())
    plain = forecast_updates(targets, build(allocation="sensitivity"), one, 256, size)
    assert plain.peak_bytes == 4 * size + 5 * num_weights
    grams = forecast_updates(targets, build(reconstruction="admm"), one, 256, size)
    assert 0 < grams.peak_bytes - plain.peak_bytes <= 4_000_000_000
    best = forecast_updates(targets, build(preset="best"), one, 256, size)
    assert best.peak_bytes - grams.peak_bytes == 4 * size + 25 * num_weights


def test_a_class_that_looks_at_numbers_is_said() -> None:
    class Looks(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return sample if sample.sum().item() > 0 else -sample

    with torch.device("meta"):
        denoiser = Looks()
    with pytest.raises(ModelError, match="Looks cannot run without numbers"):
        row_cost(denoiser, {}, Call((torch.zeros(1, 2),)))
