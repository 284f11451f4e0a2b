"""The error of the denoiser's output, estimated by gradients, as what layers are pruned for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from torch import nn

import ditprune
from ditprune import bundled
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.calls import Call
from ditprune.denoiser.replay import relative_error
from ditprune.errors import RecipeError
from ditprune.evaluation.held_out import predictions
from ditprune.method.granularity import NM, PerLayer
from ditprune.method.statistics.gram import finish_gram
from ditprune.method.words import build
from ditprune.pruning.update.budgets import LEVELS, proxy_costs
from ditprune.pruning.update.grams import LayerGram
from ditprune.pruning.update.layers import Layer, update_at
from ditprune.pruning.update.output_grams import collect_output_grams, output_gradients
from ditprune.targets.discover import Target, discover
from layer_problems import choice, error_of, layer


class TwoLinears(nn.Module):
    """y = B relu(A x), so that gradients at A's output can be written down."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


def test_the_gram_and_the_rows_are_those_of_gradients_by_hand() -> None:
    denoiser = TwoLinears()
    call = Call((torch.randn(3, 5, 6),), {})
    seen: dict[str, Any] = {}
    output_gradients(denoiser, ["b"], [call], lambda name, _x, g, _call: seen.update({name: g}))
    assert set(seen["b"].unique().tolist()) == {-1.0, 1.0}  # random signs of the output
    state = collect_output_grams(denoiser, [call], ["a"], lambda _call: 2.0)["a"]
    tokens = call.args[0].reshape(-1, 6)
    open_gates = (denoiser.a(tokens) > 0).float()
    squares = 2.0 * ((seen["b"] @ denoiser.b.weight) * open_gates).square().detach()
    expected = tokens.T @ (squares.mean(1, keepdim=True) * tokens)
    torch.testing.assert_close(finish_gram(state.gram), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.sum_squares.float(), squares.sum(0), rtol=1e-5, atol=1e-6)


def as_layer(weight: torch.Tensor) -> Layer:
    target = Target("a", (weight.shape[0], weight.shape[1]), "mlp", "blocks.0", 0)
    return Layer(target, lambda: weight, torch.abs, dict, PerLayer(), 0.0)


def test_rows_that_count_more_keep_more_and_errors_are_weighed() -> None:
    weight, gram = layer()
    rows = torch.ones(len(weight))
    rows[:3] = 100.0
    rows /= rows.mean()
    recipe = build(reconstruction="admm", mask="reconstruction", objective="output")
    alike = update_at(as_layer(weight), LayerGram(gram, torch.ones(len(weight))), recipe)(0.5)
    plain = update_at(as_layer(weight), LayerGram(gram), recipe)(0.5)
    torch.testing.assert_close(alike.weight, plain.weight)
    weighed = update_at(as_layer(weight), LayerGram(gram, rows), recipe)(0.5)
    assert weighed.keep[:3].sum() > 1.3 * plain.keep[:3].sum()
    assert int(weighed.keep.sum()) == int(plain.keep.sum())
    root = rows.sqrt()[:, None]
    of_the_output = error_of(weight * root, weighed.weight * root, gram)
    assert weighed.error == pytest.approx(of_the_output, rel=1e-3)
    assert of_the_output < 0.7 * error_of(weight * root, plain.weight * root, gram)


def test_kept_weights_keep_their_bits_without_a_reconstruction() -> None:
    weight, gram = layer()
    rows = torch.rand(len(weight), generator=torch.Generator().manual_seed(1)) + 1e-3
    recipe = build(allocation="proxy", objective="output")
    done = update_at(as_layer(weight), LayerGram(gram, rows), recipe)(0.5)
    assert torch.equal(done.weight, weight * done.keep)
    assert not done.weight[~done.keep].any()


@pytest.mark.parametrize("groups", ["layer", "channel"])
def test_the_errors_of_one_ramp_are_about_those_of_a_run_each(groups) -> None:
    weight, gram = layer(24, 64)
    solver = build(reconstruction="admm").reconstruction.prepare(weight, gram)
    choices = [choice(groups, level, weight.shape) for level in LEVELS]
    quick, exact = list(solver.errors(choices)), [solver(c).error for c in choices]
    assert quick == sorted(quick)
    for fast, slow in zip(quick, exact, strict=True):
        assert 0.9 * slow < fast < 1.6 * slow


def test_a_layer_that_no_gradient_reaches_counts_as_the_middle_one() -> None:
    weight, gram = layer()
    layers = {name: as_layer(weight) for name in ("a", "b", "c", "unreached")}
    rows = torch.ones(len(weight))
    grams = {name: LayerGram(gram * 4**i, rows) for i, name in enumerate(layers)}
    grams["unreached"] = LayerGram(gram * 1e9)
    recipe = build(allocation="proxy", objective="output")
    costs = proxy_costs(
        layers, grams.__getitem__, dict.fromkeys(layers, 1.0), recipe, lambda *_: None
    )
    assert costs["unreached"] == pytest.approx(costs["b"], rel=1e-4)


def test_it_lowers_the_error_of_a_trained_model() -> None:
    """On calls that no calibration saw; and `fast` is far below either."""
    pipeline = DiTPipeline.from_pretrained(bundled.PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    dense = pipeline.transformer
    calls, unseen = (
        sample_calls(pipeline, Sampling(n, "uniform", 6, 1.5, seed=seed))
        for n, seed in ((40, 0), (12, 1))
    )
    stats, expected = ditprune.calibrate(dense, calls), predictions(dense, unseen)

    def error(**words: Any) -> float:
        denoiser = DiTPipeline.from_pretrained(bundled.PIPELINE).transformer
        outcome = ditprune.prune_(denoiser, stats, sparsity=0.6, batches=calls, **words)
        assert outcome.sparsity == pytest.approx(0.6, abs=1e-4)
        return relative_error(zip(predictions(denoiser, unseen), expected, strict=True))

    admm = {"reconstruction": "admm", "mask": "reconstruction", "granularity": "layer"}
    plain, weighed = error(**admm), error(objective="output", **admm)
    assert weighed < 0.8 * plain
    assert error(preset="fast") < 0.5 * weighed


def test_an_objective_without_a_use_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"objective.* reconstruction or"):
        build(objective="output")
    with pytest.raises(RecipeError, match=r"objective.* did you mean 'output'"):
        build(objective="outputs", reconstruction="obs")


def test_fast_takes_a_pattern_and_other_words() -> None:
    fast = build(preset="fast")
    assert (fast.objective, fast.allocation, fast.mask) == ("output", "proxy", "reconstruction")
    assert isinstance(fast.granularity, PerLayer)
    pattern = build(preset="fast", pattern="2:4")
    assert isinstance(pattern.granularity, NM)
    assert (pattern.objective, pattern.allocation) == ("output", "uniform")
    assert build(preset="fast", granularity="channel").granularity.name == "channel"


def test_targets_of_a_real_denoiser_all_have_rows(tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    targets = discover(denoiser)
    calls = [Call.of(batch) for batch in batches(denoiser, 2)]
    states = collect_output_grams(denoiser, calls, list(targets), lambda _call: 1.0)
    for name, target in targets.items():
        assert states[name].sum_squares.shape == target.shape[:1]
        assert states[name].gram.sum_products.shape == (target.shape[1], target.shape[1])
    assert all(
        not parameter.requires_grad or parameter.grad is None for parameter in denoiser.parameters()
    )
