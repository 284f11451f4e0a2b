"""The rank of modulation: what it gets is sampled without the rest, and two Linears take over."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_denoisers
from ditprune import bundled
from ditprune.calls import Call
from ditprune.checkpoints.shrunk.low_rank import LowRank
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import InMemory, OnDisk
from ditprune.denoiser.capture import hooked, input_of
from ditprune.denoiser.layout import RowLayout
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import predicted, relative_error, run_call
from ditprune.errors import ModelError, RecipeError, TargetError
from ditprune.evaluation.held_out import predictions, sample_held_out
from ditprune.evaluation.protocol import Protocol
from ditprune.method.low_rank import LowRankFit
from ditprune.shrinking.modulation import (
    ModulationFitter,
    Wanted,
    checked_modulation,
    modulation_layers,
    ranks_at,
    shrink_modulation_,
    why_none,
)
from ditprune.shrinking.modulation_inputs import OF_LATENTS, PER_TOKEN, UNCALLED
from ditprune.shrinking.pairs import ASIDE, FIT, Pairs
from ditprune.targets.blocks import find_blocks

DIT, FLUX, SD3 = "DiTTransformer2DModel", "FluxTransformer2DModel", "SD3Transformer2DModel"
COG, FIBO = "CogVideoXTransformer3DModel", "BriaFibo2Transformer2DModel"
Z_IMAGE, PROTEINA = "ZImageTransformer2DModel", "RFD4ProteinaTransformer"


def blocks_of(denoiser: nn.Module) -> list[str]:
    return [block.path for block in find_blocks(denoiser) if not block.auxiliary]


def calls_of(name: str, count: int = 3) -> list[Call]:
    family = tiny_denoisers.FAMILIES[name]
    return [Call((), family.call(tiny_denoisers.Draw(i))) for i in range(count)]


def fitted(
    denoiser: nn.Module, calls: list[Call], wanted: Wanted, chain: Chain | None = None,
    layout: RowLayout | None = None, num_pairs: int = 64,
) -> tuple[dict[str, LowRankFit], dict[str, str]]:  # fmt: skip
    blocks = blocks_of(denoiser)
    fitter = ModulationFitter(denoiser, blocks, calls, wanted, chain, layout, num_pairs)
    done = [fitter.fit(block) for block in blocks]
    fits = {name: fit for part in done for name, fit in part.fits.items()}
    return fits, {name: why for part in done for name, why in part.whole.items()}


def chained(denoiser: nn.Module, calls: list[Call]) -> Chain:
    chain = find_chain(denoiser, blocks_of(denoiser), calls, InMemory(denoiser))
    assert isinstance(chain, Chain), chain
    return chain


def same(first: dict[str, LowRankFit], second: dict[str, LowRankFit]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(fit.up, second[name].up) and torch.equal(fit.down, second[name].down)
        for name, fit in first.items()
    )


# --- The bundled model ---


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[Call], list[Call]]:
    """The bundled denoiser, calls to fit, and calls that a sampler makes."""
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(bundled.PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    protocol = Protocol(num_held_out=4, num_inference_steps=6)
    held_out = sample_held_out(pipeline, protocol).calls["transformer"]
    labels = torch.cat([torch.arange(10), torch.full((10,), 1000)])
    calls = [
        Call((torch.randn(20, 4, 8, 8),), {"timestep": t.expand(20), "class_labels": labels})
        for t in torch.linspace(0, 999, 20).long()
    ]
    return pipeline.transformer, calls, held_out


@pytest.mark.parametrize(
    ("wanted", "most", "noise", "dtype"),
    [
        ("auto", 1e-5, 1e-5, torch.float32),
        (0.75, 5e-5, 5e-5, torch.float32),
        ("auto", 1e-5, 1e-4, torch.bfloat16),
    ],
    ids=str,
)
def test_a_trained_denoiser_loses_half_of_it_at_almost_no_error(
    trained: tuple[nn.Module, list[Call], list[Call]],
    wanted: Wanted, most: float, noise: float, dtype: torch.dtype,
) -> None:  # fmt: skip
    dense, calls, held_out = trained
    denoiser = copy.deepcopy(dense).to(dtype)
    calls = [call.map(lambda x: x.to(dtype) if x.is_floating_point() else x) for call in calls]
    fits, whole = fitted(denoiser, calls, wanted, chained(denoiser, calls[:2]), num_pairs=2048)
    assert (len(fits), whole) == (8, {})
    assert max(fit.error for fit in fits.values()) <= most
    share = 1 - sum(f.num_weights for f in fits.values()) / sum(f.num_before for f in fits.values())
    assert share >= (0.5 if wanted == "auto" else wanted)
    shrink_modulation_(denoiser, fits)
    if dtype == torch.float32:
        before, after = (predictions(model, held_out) for model in (dense, denoiser))
        assert relative_error(zip(after, before, strict=True)) <= noise


# --- Other families ---


@pytest.mark.parametrize(
    ("name", "layers", "num"),
    [
        (DIT, ("norm1.linear",), 2),
        (FLUX, ("norm1.linear", "norm1_context.linear", "norm.linear"), 6),
        (SD3, ("norm1.linear", "norm1_context.linear"), 6),
        (COG, ("norm1.linear", "norm2.linear"), 4),  # the second behind the attention
        (FIBO, ("adaLN_modulation.0",), 4),  # called twice
        (Z_IMAGE, ("adaLN_modulation.0",), 3),  # takes lists
    ],
)
def test_what_modulation_gets_does_not_depend_on_how_the_block_is_reached(
    name: str, layers: tuple[str, ...], num: int
) -> None:
    denoiser, calls = tiny_denoisers.FAMILIES[name].make(), calls_of(name)
    fits, whole = fitted(denoiser, calls, 0.5, chained(denoiser, calls))
    assert (len(fits), whole) == (num, {})
    assert {fit_name.split(".", 2)[2].removeprefix("block.") for fit_name in fits} == set(layers)
    without_chain, _ = fitted(denoiser, calls, 0.5)
    assert same(fits, without_chain)
    with_layout, _ = fitted(denoiser, calls, 0.5, layout=RowLayout(denoiser, calls))
    assert with_layout.keys() == fits.keys()
    shrink_modulation_(denoiser, fits)
    for fit_name, fit in fits.items():
        layer = denoiser.get_submodule(fit_name)
        assert isinstance(layer, LowRank)
        assert fit.num_weights <= fit.num_before / 2
    assert all(tensor.isfinite().all() for _, tensor in predicted(run_call(denoiser, calls[0]),
                                                                  calls[0]))  # fmt: skip


@pytest.mark.parametrize("name", [DIT, FLUX])
def test_recorded_inputs_lie_among_those_that_are_sampled(name: str) -> None:
    """All of the rank is needed to keep what the denoiser's own calls give, and kept."""
    denoiser, calls = tiny_denoisers.FAMILIES[name].make(), calls_of(name)
    layers = [n for names in modulation_layers(denoiser, blocks_of(denoiser)).values()
              for n in names]  # fmt: skip
    low = copy.deepcopy(denoiser)
    fits, _ = fitted(low, calls, 0.2)
    shrink_modulation_(low, fits)
    errors: dict[str, list[float]] = {name: [] for name in layers}

    def compare(key: str, module: nn.Module, call: Call) -> None:
        inputs = input_of(call)
        layer: Any = low.get_submodule(key)
        expected = nn.functional.linear(inputs, module.weight, module.bias)  # type: ignore[arg-type]
        errors[key].append(float((layer(inputs) - expected).square().sum() /
                                 expected.square().sum()))  # fmt: skip

    with hooked({key: denoiser.get_submodule(key) for key in layers}, compare):
        for call in calls:
            run_call(denoiser, call)
    for key in layers:
        assert max(errors[key]) < 4 * fits[key].error + 1e-6


@pytest.mark.parametrize("name", [DIT, FLUX])
def test_blocks_on_disk_give_the_same_fits(name: str, tmp_path: Path) -> None:
    denoiser, calls = tiny_denoisers.FAMILIES[name].make(), calls_of(name)
    expected, _ = fitted(denoiser, calls, 0.5)
    denoiser.save_pretrained(tmp_path)
    blocks = blocks_of(denoiser)
    on_disk = OnDisk(tmp_path, blocks, Placement())
    chain = find_chain(on_disk.denoiser, blocks, calls, on_disk)
    assert isinstance(chain, Chain)
    fitter = ModulationFitter(on_disk.denoiser, blocks, calls, 0.5, chain, num_pairs=64)
    fits: dict[str, LowRankFit] = {}
    for block in blocks:
        with on_disk.resident(block):
            fits |= fitter.fit(block).fits
        assert all(p.is_meta for p in on_disk.denoiser.get_submodule(block).parameters())
    assert same(fits, expected)
    last, fitter = {}, ModulationFitter(on_disk.denoiser, blocks, calls, 0.5, chain, num_pairs=64)
    with on_disk.resident(blocks[-1]):  # as a run that goes on after it was killed
        last = fitter.fit(blocks[-1]).fits
    assert same(last, {name: fit for name, fit in expected.items() if name in last})


def test_sampling_runs_no_attention_and_leaves_nothing_behind() -> None:
    denoiser, calls = tiny_denoisers.FAMILIES[FLUX].make(), calls_of(FLUX)
    chain = chained(denoiser, calls)
    runs: list[str] = []
    watched = {n: m for n, m in denoiser.named_modules() if n.endswith(("x_embedder", ".to_q"))}
    before = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in denoiser.modules()]
    denoiser.train()
    with hooked(watched, lambda name, *_: runs.append(name)):
        fitted(denoiser, calls, 0.5, chain, num_pairs=512)
    num_forwards = runs.count("x_embedder")
    assert num_forwards == 2 * 4 + 512 // 2  # two to try each block, and all pairs once
    # Once in the first block of each class, to see which layers it calls.
    assert len(runs) - num_forwards == 2
    after = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in denoiser.modules()]
    assert (after, denoiser.training) == (before, True)
    assert not any("forward" in vars(module) for module in denoiser.modules())


@pytest.mark.parametrize(
    "name", ["PixArtTransformer2DModel", "WanTransformer3DModel", "Flux2Transformer2DModel",
             "SanaTransformer2DModel"],
)  # fmt: skip
def test_modulation_outside_the_blocks_is_left_and_said(name: str) -> None:
    denoiser = tiny_denoisers.FAMILIES[name].make().to("meta")
    why = why_none(denoiser, modulation_layers(denoiser, blocks_of(denoiser)))
    assert why is not None
    assert why.startswith(f"{name}: no layer of its blocks is modulation")
    dit = tiny_denoisers.FAMILIES[DIT].make().to("meta")
    assert why_none(dit, modulation_layers(dit, blocks_of(dit))) is None


# --- What is no modulation, and what stays ---


class _Block(nn.Module):
    def __init__(self, reads: str) -> None:
        super().__init__()
        self.attn_q, self.mlp = nn.Linear(16, 16), nn.Linear(16, 16)
        self.modulation, self.reads = nn.Linear(16, 48), reads

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        if self.reads == "nothing":
            return h + self.mlp(self.attn_q(h))
        given = {"condition": c, "latents": h.mean(1) + c, "tokens": h}[self.reads]
        shift, scale, gate = self.modulation(given).chunk(3, -1)
        if self.reads != "tokens":
            shift, scale, gate = shift[:, None], scale[:, None], gate[:, None]
        return h + gate * self.mlp(self.attn_q(h * scale + shift))


class _Denoiser(nn.Module):
    def __init__(self, reads: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(reads), _Block(reads)])

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        c = c + torch.outer(t, torch.linspace(0, 1, 16)).sin()
        for block in self.blocks:
            x = block(x, c)
        return x


def foreign_calls(rows: int = 4) -> list[Call]:
    draw = tiny_denoisers.Draw(0)
    return [
        Call((draw.normal(rows, 6, 16),), {"t": draw.uniform(rows), "c": draw.normal(rows, 16)})
        for _ in range(4)
    ]


@pytest.mark.parametrize(
    ("reads", "why"),
    [("latents", OF_LATENTS), ("tokens", PER_TOKEN), ("nothing", UNCALLED), ("condition", "")],
)
def test_a_layer_that_only_seems_to_be_modulation_stays(reads: str, why: str) -> None:
    fits, whole = fitted(_Denoiser(reads), foreign_calls(), 0.5)
    names = ["blocks.0.modulation", "blocks.1.modulation"]
    assert (list(fits), list(whole.items())) == (
        ([], [(name, why) for name in names]) if why else (names, [])
    )


def test_rows_for_each_token_are_no_modulation() -> None:
    fits, whole = fitted(tiny_denoisers.FAMILIES[PROTEINA].make(), calls_of(PROTEINA), 0.5)
    assert (fits, set(whole.values())) == ({}, {PER_TOKEN})


def test_random_weights_need_their_rank_and_say_so() -> None:
    fits, whole = fitted(_Denoiser("condition"), foreign_calls(), "auto")
    assert not fits
    assert all(why.startswith("it needs a rank of ") for why in whole.values())


def test_one_timestep_and_one_condition_need_next_to_no_rank() -> None:
    call = foreign_calls(1)[0]
    denoiser = _Denoiser("condition")
    fits, _ = fitted(denoiser, [call], "auto")
    assert {fit.rank for fit in fits.values()} == {8}
    dense = predicted(run_call(denoiser, call), call)
    shrink_modulation_(denoiser, fits)
    assert relative_error([(predicted(run_call(denoiser, call), call), dense)]) < 1e-10


def test_what_is_of_low_rank_loses_more() -> None:
    denoiser, calls = _Denoiser("condition"), foreign_calls()
    first, _ = fitted(denoiser, calls, 0.3)
    shrink_modulation_(denoiser, first)
    blocks = blocks_of(denoiser)
    assert modulation_layers(denoiser, blocks)["blocks.0"] == ("blocks.0.modulation",)
    second, _ = fitted(denoiser, calls, 0.5)
    before, after = first["blocks.0.modulation"], second["blocks.0.modulation"]
    assert after.num_before == before.num_weights
    assert after.num_weights <= before.num_weights / 2
    shrink_modulation_(denoiser, second)
    assert denoiser.blocks[0].modulation.rank == after.rank  # type: ignore[union-attr]


def test_weights_and_inputs_that_are_not_finite_are_refused() -> None:
    denoiser, calls = _Denoiser("condition"), foreign_calls()
    calls[1].kwargs["c"][0, 0] = torch.nan
    with pytest.raises(TargetError, match=r"blocks\.0\.modulation: NaN or Inf in what it gets"):
        fitted(denoiser, calls, 0.5)
    denoiser.blocks[1].modulation.weight.data[0, 0] = torch.inf  # type: ignore[union-attr]
    with pytest.raises(TargetError, match=r"blocks\.1\.modulation: NaN or Inf in its weight"):
        fitted(denoiser, foreign_calls(), 0.5)


def test_weights_that_are_not_there_are_refused() -> None:
    denoiser = _Denoiser("condition")
    denoiser.blocks[1].to("meta")
    with pytest.raises(ModelError, match=r"blocks\.1\.modulation: .*without values"):
        fitted(denoiser, foreign_calls(), 0.5)


# --- Words ---


@pytest.mark.parametrize(
    ("given", "stands_for"),
    [("auto", "auto"), ("none", "none"), (0.75, 0.75), ("0.75", 0.75), (0, "none"), ("0", "none")],
)
def test_words_and_shares(given: Any, stands_for: Wanted) -> None:
    assert checked_modulation(given) == stands_for


@pytest.mark.parametrize("given", ["most", 1, 1.0, -0.1, "nan", float("inf"), True, None, [0.5]])
def test_other_words_are_refused(given: Any) -> None:
    with pytest.raises(RecipeError, match=r"modulation.*expected auto, none, or the share"):
        checked_modulation(given)


def test_a_share_that_leaves_no_rank_is_refused_before_anything_runs() -> None:
    denoiser = _Denoiser("condition").to("meta")
    with pytest.raises(RecipeError, match=r"modulation=0\.95.*first blocks\.0.*at most 0\.9167"):
        ModulationFitter(denoiser, blocks_of(denoiser), foreign_calls(), 0.95)
    assert ranks_at(denoiser, ["blocks.0.modulation"], 0.9) == {"blocks.0.modulation": 1}


# --- Pairs ---


def pairs_of(calls: list[Call], num_pairs: int = 400) -> Iterator[tuple[int, Any, Any]]:
    """(side, timestep, condition) of every row."""
    for pair in Pairs(_Denoiser("condition"), calls, num_pairs=num_pairs):
        rows = zip(pair.sides.tolist(), pair.call.kwargs["t"], pair.call.kwargs["c"], strict=True)
        yield from ((side, t.item(), tuple(c.reshape(-1).tolist())) for side, t, c in rows)


def test_pairs_have_timesteps_between_the_seen_ones_and_no_pair_on_both_sides() -> None:
    calls = foreign_calls()
    seen = list(pairs_of(calls))
    assert seen == list(pairs_of(calls))
    recorded = {t.item() for call in calls for t in call.kwargs["t"]}
    times = {t for _, t, _ in seen}
    assert recorded < times
    assert (min(times), max(times)) == (min(recorded), max(recorded))
    fit, aside = ({(t, c) for side, t, c in seen if side == part} for part in (FIT, ASIDE))
    assert fit
    assert aside
    assert not fit & aside
    assert len(seen) == 400


def test_conditions_that_come_rarely_are_on_one_side_and_labels_on_both() -> None:
    draw = tiny_denoisers.Draw(0)
    prompts = foreign_calls()
    empty = torch.zeros(16)
    for call in prompts:
        call.kwargs["c"][:2] = empty  # as half of the rows are with guidance
    seen = list(pairs_of(prompts))
    by_side = [{c for side, _, c in seen if side == part} for part in (FIT, ASIDE)]
    assert by_side[FIT] & by_side[ASIDE] == {tuple(empty.tolist())}
    assert (len(by_side[FIT]), len(by_side[ASIDE])) == (1 + 6, 1 + 2)
    labels = [
        Call((draw.normal(4, 6, 16),), {"t": draw.integers(1000, 4), "c": draw.integers(3, 4)})
        for _ in range(8)
    ]
    seen = list(pairs_of(labels))
    assert all(isinstance(t, int) for _, t, _ in seen)
    by_side = [{c for side, _, c in seen if side == part} for part in (FIT, ASIDE)]
    assert by_side[FIT] == by_side[ASIDE] == {(0,), (1,), (2,)}
    fit, aside = ({(t, c) for side, t, c in seen if side == part} for part in (FIT, ASIDE))
    assert not fit & aside
    assert 0.15 < sum(side == ASIDE for side, _, _ in seen) / len(seen) < 0.35
