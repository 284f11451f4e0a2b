"""Pruning in place: exact counts, the right weights, nothing else; on refusal nothing at all."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune import NM, RIA, STW, Magnitude, PerChannel, PerLayer, Power, Wanda
from ditprune.errors import RecipeError, StatisticsError, TargetError
from ditprune.method.granularity import heterogeneity
from ditprune.method.statistics.column_norm import ColumnNorm
from ditprune.method.words import build
from ditprune.targets.discover import discover

SALIENCIES = [Magnitude(), Wanda(), STW(), Power(3, 0.5), RIA()]
WAYS: list[dict[str, Any]] = [
    *(
        {"granularity": granularity, "sparsity": sparsity}
        for granularity in ("layer", "channel", "cag")
        for sparsity in (0.3, 0.5)
    ),
    {"pattern": "2:4"},
    {"pattern": "4:8"},
]


def tensors_of(denoiser: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and every buffer, those outside the state dict too."""
    named = [*denoiser.named_parameters(), *denoiser.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def zeros_of(denoiser: nn.Module, name: str) -> Tensor:
    return denoiser.get_parameter(f"{name}.weight").detach() == 0


def naive_zeros(scores: Tensor, num_groups: int, num_prune: int) -> Tensor:
    """The lowest of each group by a stable sort."""
    groups = scores.reshape(num_groups, -1)
    order = groups.sort(dim=1, stable=True).indices[:, :num_prune]
    return torch.zeros(groups.shape, dtype=torch.bool).scatter_(1, order, True).view(scores.shape)


def check_groups(outcome: ditprune.Outcome, name: str, zeros: Tensor) -> None:
    """Exact counts in every group, and the record that says so."""
    target, recipe = outcome.targets[name], outcome.recipe
    groups, removed = {
        "layer": (zeros.reshape(1, -1), lambda size: round(recipe.sparsity * size)),
        "channel": (zeros, lambda size: round(recipe.sparsity * size)),
        "2:4": (zeros.reshape(-1, 4), lambda size: 2),
        "4:8": (zeros.reshape(-1, 8), lambda size: 4),
    }[target.granularity]
    num_groups, size = groups.shape
    assert (groups.sum(1) == removed(size)).all()
    assert target.num_groups == num_groups
    assert target.num_asked == target.num_pruned == target.num_zero == num_groups * removed(size)
    assert target.shape == tuple(zeros.shape)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
@pytest.mark.parametrize("saliency", SALIENCIES, ids=repr)
def test_removes_exactly_the_lowest_of_each_group_and_changes_nothing_else(
    saliency, way, tiny_dit, tiny_stats, same_bits
) -> None:
    denoiser = tiny_dit()
    plan = ditprune.inspect(denoiser, tiny_stats, saliency=saliency, **way)
    before = tensors_of(denoiser)
    outcome = ditprune.prune_(denoiser, tiny_stats, saliency=saliency, **way)
    assert list(outcome.targets) == list(discover(denoiser))
    assert outcome.recipe == plan.recipe == build(saliency=saliency, **way)
    assert outcome.cag_threshold == plan.cag_threshold

    after = tensors_of(denoiser)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        target = outcome.targets.get(name.removesuffix(".weight"))
        if target is None:
            same_bits(after[name], tensor)
            continue
        zeros = zeros_of(denoiser, target.name)
        check_groups(outcome, target.name, zeros)
        same_bits(after[name][~zeros], tensor[~zeros])
        scores = saliency(tensor, tiny_stats.column_norm(target.name))
        num_prune = target.num_pruned // target.num_groups
        torch.testing.assert_close(zeros, naive_zeros(scores, target.num_groups, num_prune))
        planned = plan.targets[target.name]
        assert target.g_out == planned.g_out == heterogeneity(scores)
        assert (planned.granularity, planned.num_prune) == (target.granularity, target.num_pruned)


def test_cag_compares_modulation_per_channel_and_the_rest_per_layer(tiny_dit, tiny_stats) -> None:
    outcome = ditprune.prune_(tiny_dit(), tiny_stats)
    by_role = {
        role: {t.granularity for t in outcome.targets.values() if t.role == role}
        for role in ("modulation", "attention", "mlp")
    }
    assert by_role == {"modulation": {"channel"}, "attention": {"layer"}, "mlp": {"layer"}}
    for target in outcome.targets.values():
        assert (target.g_out >= outcome.cag_threshold) == (target.granularity == "channel")
    assert min(t.g_out for t in outcome.targets.values() if t.role == "modulation") > 1


@pytest.mark.parametrize(("cag_threshold", "same_as"), [(0, "channel"), (1e9, "layer")])
def test_cag_at_the_ends_is_one_granularity(
    cag_threshold, same_as, tiny_dit, tiny_stats, same_bits
) -> None:
    one, two = tiny_dit(), tiny_dit()
    ditprune.prune_(one, tiny_stats, cag_threshold=cag_threshold)
    ditprune.prune_(two, tiny_stats, granularity=same_as)
    for name, tensor in tensors_of(one).items():
        same_bits(tensor, tensors_of(two)[name])


def test_the_totals_are_those_of_the_denoiser(tiny_dit, tiny_stats) -> None:
    denoiser = tiny_dit()
    outcome = ditprune.prune_(denoiser, tiny_stats, sparsity=0.5)
    num_zero = sum(int(zeros_of(denoiser, name).sum()) for name in outcome.targets)
    assert outcome.num_pruned == num_zero
    assert outcome.num_weights == sum(zeros_of(denoiser, n).numel() for n in outcome.targets)
    assert outcome.num_parameters == sum(p.numel() for p in denoiser.parameters())
    assert outcome.sparsity == num_zero / outcome.num_weights == 0.5
    assert outcome.model_sparsity == num_zero / outcome.num_parameters
    assert outcome.skipped == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.num_parameters = 0


def test_zeros_that_were_there_before_are_counted_apart(tiny_dit) -> None:
    denoiser = tiny_dit()
    name = "transformer_blocks.0.attn1.to_q"
    with torch.no_grad():
        denoiser.get_parameter(f"{name}.weight")[:, :24] = 0
    outcome = ditprune.prune_(denoiser, saliency="magnitude", granularity="channel", sparsity=0.5)
    target = outcome.targets[name]
    assert (target.num_asked, target.num_pruned, target.num_zero) == (512, 512, 768)


def test_sparsity_zero_changes_nothing(tiny_dit, tiny_stats, same_bits) -> None:
    denoiser = tiny_dit()
    before = tensors_of(denoiser)
    assert ditprune.prune_(denoiser, tiny_stats, sparsity=0).num_pruned == 0
    for name, tensor in tensors_of(denoiser).items():
        same_bits(tensor, before[name])


def test_the_pruned_denoiser_still_runs_and_differs(tiny_dit, tiny_stats, batches) -> None:
    denoiser = tiny_dit()
    call = batches(denoiser, 1)[0]
    with torch.no_grad():
        dense = denoiser(**call).sample
        ditprune.prune_(denoiser, tiny_stats)
        pruned = denoiser(**call).sample
    assert pruned.isfinite().all()
    assert not torch.allclose(dense, pruned)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_patterns_change_which_targets_and_nothing_about_the_others(
    option, tiny_dit, tiny_stats, same_bits
) -> None:
    whole, part = tiny_dit(), tiny_dit()
    before = tensors_of(part)
    ditprune.prune_(whole, tiny_stats)
    outcome = ditprune.prune_(part, tiny_stats, **{option: ["*.attn1.to_q", "*.ff.*"]})
    matched = {n for n in discover(part) if n.endswith("attn1.to_q") or ".ff." in n}
    chosen = matched if option == "include" else set(discover(part)) - matched
    assert set(outcome.targets) == chosen
    for name, tensor in tensors_of(part).items():
        pruned = name.removesuffix(".weight") in chosen
        same_bits(tensor, tensors_of(whole)[name] if pruned else before[name])


def test_magnitude_needs_no_statistics_and_ignores_them(tiny_dit, tiny_stats, same_bits) -> None:
    one, two = tiny_dit(), tiny_dit()
    ditprune.prune_(one, saliency="magnitude")
    ditprune.prune_(two, tiny_stats, saliency="magnitude")
    for name, tensor in tensors_of(one).items():
        same_bits(tensor, tensors_of(two)[name])


def test_a_power_without_activations_needs_no_statistics(tiny_dit) -> None:
    constants = {"weight_power": 2, "activation_power": 0}
    outcome = ditprune.prune_(tiny_dit(), saliency="power", granularity="layer", **constants)
    assert outcome.sparsity == 0.5


def assert_refused_untouched(denoiser, error, match, same_bits, *args, **words) -> None:
    before = tensors_of(denoiser)
    with pytest.raises(error, match=match) as caught:
        ditprune.prune_(denoiser, *args, **words)
    assert "\n" not in str(caught.value)
    for name, tensor in tensors_of(denoiser).items():
        same_bits(tensor, before[name])


@pytest.mark.parametrize("saliency", ["wanda", "stw", "ria", Power(2, 1)])
def test_the_others_are_refused_without_statistics(saliency, tiny_dit, same_bits) -> None:
    assert_refused_untouched(
        tiny_dit(), RecipeError, "needs the inputs of the layers", same_bits, saliency=saliency
    )


@pytest.mark.parametrize("saliency", ["stw", "magnitude"])
def test_statistics_of_another_model_are_refused(saliency, tiny_dit, tiny_stats, same_bits) -> None:
    assert_refused_untouched(
        tiny_dit(seed=1), StatisticsError, "made from other weights .*calibrate this model",
        same_bits, tiny_stats, saliency=saliency,
    )  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_with_nan_or_inf_is_refused_by_name(value, tiny_dit, batches, same_bits) -> None:
    denoiser = tiny_dit()
    name = "transformer_blocks.2.ff.net.2"  # the last target: others must not be pruned before
    with torch.no_grad():
        denoiser.get_parameter(f"{name}.weight")[1, 1] = value
    for saliency in ("magnitude", Magnitude()):
        assert_refused_untouched(
            denoiser, TargetError, rf"{name}: its weight holds NaN or Inf.*exclude it", same_bits,
            saliency=saliency,
        )  # fmt: skip
    outcome = ditprune.prune_(denoiser, saliency="magnitude", exclude="*.2.ff.net.2")
    assert len(outcome.targets) == 20


def test_statistics_with_nan_are_refused_before_anything_changes(
    tiny_dit, tiny_stats, same_bits
) -> None:
    name = "transformer_blocks.2.ff.net.2"
    broken = ColumnNorm(torch.full((1, 128), math.nan, dtype=torch.float64), (1,))
    stats = dataclasses.replace(tiny_stats, column_norms={**tiny_stats.column_norms, name: broken})
    for granularity in ("channel", "cag"):
        assert_refused_untouched(
            tiny_dit(),
            (TargetError, StatisticsError),
            name,
            same_bits,
            stats,
            granularity=granularity,
        )


def test_a_squared_weight_beyond_float32_on_a_silent_channel_goes(tiny_dit, tiny_stats) -> None:
    """0 · Inf would be NaN."""
    denoiser = tiny_dit()
    name = "transformer_blocks.2.ff.net.2"
    with torch.no_grad():
        # Not at a place that the fingerprint reads.
        denoiser.get_parameter(f"{name}.weight").view(-1)[1200] = 1e30
    state = tiny_stats.column_norms[name]
    sums = state.sum_squares.clone()
    sums[:, 1200 % 128] = 0
    changed = {**tiny_stats.column_norms, name: ColumnNorm(sums, state.tokens_in_bin)}
    stats = dataclasses.replace(tiny_stats, column_norms=changed)
    outcome = ditprune.prune_(denoiser, stats, granularity="channel")
    assert denoiser.get_parameter(f"{name}.weight").view(-1)[1200] == 0
    assert outcome.sparsity == 0.5


def test_scores_beyond_float64_are_refused_before_anything_changes(
    tiny_dit, tiny_stats, same_bits
) -> None:
    denoiser = tiny_dit()
    name = "transformer_blocks.2.ff.net.2"
    with torch.no_grad():
        denoiser.get_parameter(f"{name}.weight").view(-1)[1200] = 1e30
    assert_refused_untouched(
        denoiser, TargetError, rf"{name}: float64 does not hold its power scores; use smaller",
        same_bits, tiny_stats, saliency=Power(16, 1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"pattern": "3:5"}, RecipeError, r"transformer_blocks\.0\.norm1\.linear: 3:5 needs input "
         r"channels divisible by 5, got 32; exclude it with exclude='\*\.norm1\.linear'"),
        ({"include": "*.to_qq"}, TargetError, "matches none of 21 targets"),
        ({"sparsity": 1.0}, RecipeError, "sparsity=1.0"),
        ({"saliency": "stww"}, RecipeError, "did you mean 'stw'"),
        ({"pattern": "2:4", "sparsity": 0.5}, RecipeError, "exclude each other"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_changes_nothing(
    words, error, match, tiny_dit, tiny_stats, same_bits
) -> None:
    assert_refused_untouched(tiny_dit(), error, match, same_bits, tiny_stats, **words)


def test_the_layer_that_does_not_divide_can_be_excluded(tiny_dit, tiny_stats) -> None:
    outcome = ditprune.prune_(tiny_dit(), tiny_stats, pattern="32:64", include="*.ff.net.2")
    assert {target.granularity for target in outcome.targets.values()} == {"32:64"}


def test_objects_and_words_do_the_same(tiny_dit, tiny_stats, same_bits) -> None:
    pairs = [
        ({"saliency": STW(), "granularity": PerChannel()}, {"granularity": "channel"}),
        ({"saliency": Power(2, 1), "granularity": PerLayer()}, {"granularity": "layer"}),
        ({"pattern": NM(2, 4)}, {"pattern": "2:4"}),
        ({"granularity": NM(2, 4)}, {"pattern": "2:4"}),
    ]
    for objects, words in pairs:
        one, two = tiny_dit(), tiny_dit()
        ditprune.prune_(one, tiny_stats, **objects)
        ditprune.prune_(two, tiny_stats, **words)
        for name, tensor in tensors_of(one).items():
            same_bits(tensor, tensors_of(two)[name])


@pytest.mark.parametrize("way", [WAYS[1], WAYS[3], WAYS[5], WAYS[6]], ids=str)
def test_a_dit_written_like_the_original_is_pruned(way, original_dit, batches, same_bits) -> None:
    denoiser = original_dit()
    stats = ditprune.calibrate(denoiser, batches(denoiser))
    before = tensors_of(denoiser)
    outcome = ditprune.prune_(denoiser, stats, **way)
    assert len(outcome.targets) == 10
    for name, tensor in tensors_of(denoiser).items():
        target = name.removesuffix(".weight")
        if target in outcome.targets:
            check_groups(outcome, target, zeros_of(denoiser, target))
        else:
            same_bits(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_their_dtype_and_bits(
    dtype, tiny_dit, tiny_stats, same_bits
) -> None:
    denoiser = tiny_dit().to(dtype)
    before = tensors_of(denoiser)
    outcome = ditprune.prune_(denoiser, saliency="magnitude", granularity="layer")
    for name, target in outcome.targets.items():
        weight = denoiser.get_parameter(f"{name}.weight").detach()
        assert weight.dtype == dtype
        kept = weight != 0
        same_bits(weight[kept], before[f"{name}.weight"][kept])
        assert target.num_pruned == round(0.5 * weight.numel())


def test_the_same_bits_on_every_run_and_any_number_of_threads(
    tiny_dit, batches, with_threads, same_bits
) -> None:
    def run() -> dict[str, Tensor]:
        denoiser = tiny_dit().to(torch.bfloat16).float()  # ties
        ditprune.prune_(denoiser, ditprune.calibrate(denoiser, batches(denoiser)))
        return tensors_of(denoiser)

    first = with_threads(1, run)
    for other in (with_threads(1, run), with_threads(2, run)):
        for name, tensor in first.items():
            same_bits(other[name], tensor)


def test_a_trainable_denoiser_stays_trainable(tiny_dit, tiny_stats) -> None:
    denoiser = tiny_dit()
    parameters = {name: id(parameter) for name, parameter in denoiser.named_parameters()}
    ditprune.prune_(denoiser, tiny_stats)
    assert {name: id(parameter) for name, parameter in denoiser.named_parameters()} == parameters
    assert all(parameter.requires_grad for parameter in denoiser.parameters())


def test_one_calibration_serves_pruning_in_steps(tiny_dit, tiny_stats, same_bits) -> None:
    """Roles may be pruned one after the other at their own sparsity, from the dense statistics."""
    stepwise, at_once = tiny_dit(), tiny_dit()
    ditprune.prune_(stepwise, tiny_stats, 0.3, include="*.norm1.linear")
    ditprune.prune_(stepwise, tiny_stats, 0.5, include="*.ff.*")
    ditprune.prune_(at_once, tiny_stats, 0.5, include="*.ff.*")
    for name, tensor in at_once.state_dict().items():
        if ".ff." in name:
            same_bits(stepwise.state_dict()[name], tensor)
    assert (stepwise.transformer_blocks[0].norm1.linear.weight == 0).float().mean() > 0.29
    with pytest.raises(StatisticsError, match="other weights"):
        ditprune.prune_(stepwise, tiny_stats, 0.7, include="*.ff.*")


def test_a_layer_whose_inputs_were_all_zero_stays_dense(tiny_dit, tiny_stats, same_bits) -> None:
    """All its scores are zero: only their position could choose."""
    name = "transformer_blocks.1.ff.net.2"
    state = tiny_stats.column_norms[name]
    silent = ColumnNorm(torch.zeros_like(state.sum_squares), state.tokens_in_bin)
    stats = dataclasses.replace(tiny_stats, column_norms={**tiny_stats.column_norms, name: silent})
    denoiser = tiny_dit()
    outcome = ditprune.prune_(denoiser, stats)
    assert dict(outcome.skipped) == {name: "its calibration inputs are all zero"}
    assert name not in outcome.targets
    same_bits(denoiser.get_parameter(f"{name}.weight"), tiny_dit().get_parameter(f"{name}.weight"))
    with pytest.raises(TargetError, match="none of the targets can be scored"):
        ditprune.prune_(tiny_dit(), stats, include=name)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_blocks_beside_the_trunk_are_pruned_where_asked(auxiliary, original_dit) -> None:
    whole = torch.nn.Module()
    whole.denoiser, whole.text = original_dit(), torch.nn.Module()
    whole.text.refiner = torch.nn.ModuleList([original_dit(seed=1).blocks[0]])
    plan = ditprune.inspect(whole, saliency="magnitude", auxiliary=auxiliary)
    outcome = ditprune.prune_(whole, saliency="magnitude", auxiliary=auxiliary)
    assert plan.targets.keys() == outcome.targets.keys()
    refiner = [name for name in outcome.targets if name.startswith("text.refiner.0.")]
    assert bool(refiner) == auxiliary
    assert [n for n, target in outcome.targets.items() if target.auxiliary] == refiner
    assert list(outcome.left_out) == ([] if auxiliary else ["text.refiner"])
    assert outcome.left_out == plan.left_out
    num_zero = sum(int((p == 0).sum()) for p in whole.text.parameters() if p.ndim == 2)
    assert num_zero == sum(outcome.targets[name].num_pruned for name in refiner)
