"""Whole recipes on a loaded denoiser: exact counts, less error, and nothing else touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import ditprune
from ditprune.calls import Call
from ditprune.denoiser.replay import relative_error
from ditprune.errors import RecipeError, StatisticsError
from ditprune.evaluation.held_out import predictions
from ditprune.method.distill import Distill
from ditprune.method.words import build
from ditprune.targets.discover import discover

METHODS: list[dict[str, Any]] = [
    {"reconstruction": "obs"},
    {"reconstruction": "obs", "mask": "reconstruction"},
    {"reconstruction": "admm"},
    {"reconstruction": "admm", "mask": "reconstruction"},
    {"reconstruction": "admm", "allocation": "owl"},
    {"reconstruction": "admm", "mask": "reconstruction", "allocation": "sensitivity"},
    {"reconstruction": "admm", "allocation": "proxy"},
    {"reconstruction": "admm", "mask": "reconstruction", "packages": 2},
    {"preset": "fast"},
    {"allocation": "owl"},
    {"allocation": "proxy"},
    {
        "reconstruction": "admm",
        "mask": "refinement",
        "allocation": "sensitivity",
        "refinement": Distill(num_steps=40, learning_rate=1e-3, batch_size=4, held_back=0.2),
    },
    {
        "reconstruction": "obs",
        "mask": "refinement",
        "allocation": "owl",
        "refinement": Distill(num_steps=40, learning_rate=1e-3, batch_size=4, held_back=0.2),
    },
    {"refinement": Distill(num_steps=20, learning_rate=1e-3, batch_size=4)},
    {"refinement": Distill(num_steps=5, batch_size=4, mixing=0, block_weight=0)},
]
PATTERNS = [
    words | {"pattern": "2:4"}
    for words in METHODS
    if words.get("allocation", "uniform") == "uniform" and words.get("mask") != "refinement"
]  # fmt: skip


@pytest.fixture
def calls(tiny_dit, batches) -> list[Call]:
    return [Call.of(batch) for batch in batches(tiny_dit(), 4)]


def held_out(tiny_dit, batches) -> list[Call]:
    return [Call.of(batch) for batch in batches(tiny_dit(), 8)[4:]]


def error(denoiser: nn.Module, dense: nn.Module, calls: list[Call]) -> float:
    return relative_error(zip(predictions(denoiser, calls), predictions(dense, calls), strict=True))


@pytest.mark.parametrize("words", METHODS + PATTERNS, ids=str)
def test_counts_are_exact_and_all_else_is_untouched(
    words, tiny_dit, batches, calls, same_bits
) -> None:
    """Two blocks are the fewest that packages cut."""
    denoiser, dense = tiny_dit(num_layers=2), tiny_dit(num_layers=2)
    stats = ditprune.calibrate(dense, batches(dense))
    for parameter in denoiser.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    gradients = {name: one.grad for name, one in denoiser.named_parameters()}
    given = {"batches": calls} if build(**words).needs_calls else {}
    outcome = ditprune.prune_(denoiser, stats, **given, **words)
    targets = discover(denoiser)
    assert outcome.targets.keys() == targets.keys()
    for name, tensor in dense.named_parameters():
        target = outcome.targets.get(name.removesuffix(".weight"))
        now = denoiser.get_parameter(name)
        assert now.requires_grad == tensor.requires_grad
        assert now.grad is gradients[name]
        assert (now.grad == 0.5).all()
        if target is None:
            same_bits(now, tensor)
            continue
        groups = (now == 0).reshape(target.num_groups, -1).sum(1)
        assert target.num_asked == target.num_pruned <= target.num_zero
        assert (groups >= target.num_pruned // target.num_groups).all()
    assert outcome.num_pruned == round(0.5 * outcome.num_weights)
    assert not any(module._forward_hooks for module in denoiser.modules())


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"reconstruction": "admm"}, {}),
        ({"reconstruction": "admm", "mask": "reconstruction"}, {"reconstruction": "admm"}),
        ({"refinement": Distill(num_steps=60, learning_rate=1e-3, batch_size=4)}, {}),
    ],
    ids=str,
)
def test_what_costs_more_gives_more(better, worse, tiny_dit, tiny_stats, calls) -> None:
    """On the calls that it was given."""
    errors = []
    for words in (better, worse):
        denoiser = tiny_dit()
        given = {"batches": calls} if words else {}
        ditprune.prune_(denoiser, tiny_stats, **given, **words)
        errors.append(error(denoiser, tiny_dit(), calls))
    assert errors[0] < errors[1]


def test_a_run_is_the_same_twice(tiny_dit, tiny_stats, calls, same_bits) -> None:
    one, two = tiny_dit(), tiny_dit()
    words: dict[str, Any] = {
        "preset": "best", "refinement": Distill(num_steps=5, batch_size=4), "sparsity": 0.6,
    }  # fmt: skip
    for denoiser in (one, two):
        ditprune.prune_(denoiser, tiny_stats, batches=calls, **words)
    for name, tensor in one.state_dict().items():
        same_bits(two.state_dict()[name], tensor)


def test_an_allocation_moves_weights_between_layers_and_keeps_the_total(
    tiny_dit, tiny_stats, calls
) -> None:
    even = ditprune.prune_(tiny_dit(), tiny_stats, 0.6)
    budgets = ditprune.prune_(tiny_dit(), tiny_stats, 0.6, allocation="sensitivity", batches=calls)
    assert budgets.num_pruned == even.num_pruned
    shares = {n: t.num_pruned / t.num_weights for n, t in budgets.targets.items()}
    assert max(shares.values()) - min(shares.values()) > 0.1
    for target in budgets.targets.values():
        assert target.sparsity == pytest.approx(target.num_pruned / target.num_weights)


def test_refining_only_trains_kept_weights(tiny_dit, tiny_stats, calls, same_bits) -> None:
    plain, refined = tiny_dit(), tiny_dit()
    ditprune.prune_(plain, tiny_stats)
    settings = Distill(num_steps=10, batch_size=4)
    ditprune.prune_(refined, tiny_stats, refinement=settings, batches=calls)
    changed = 0
    for name, tensor in plain.named_parameters():
        now = refined.get_parameter(name)
        if name.removesuffix(".weight") in discover(plain):
            same_bits((now == 0) & (tensor == 0), tensor == 0)
            changed += int((now != tensor).sum())
        else:
            same_bits(now, tensor)
    assert changed > 0


def test_weighting_timesteps_changes_masks_and_needs_places(tiny_dit, calls) -> None:
    placed = [
        Call(call.args, call.kwargs, place=(i + 0.5) / len(calls)) for i, call in enumerate(calls)
    ]
    stats = ditprune.calibrate(tiny_dit(), placed)
    even, falling = tiny_dit(), tiny_dit()
    ditprune.prune_(even, stats)
    ditprune.prune_(falling, stats, timestep_weighting="log-decrease")
    assert any(
        not torch.equal(a == 0, b == 0)
        for a, b in zip(even.parameters(), falling.parameters(), strict=True)
    )
    unplaced = ditprune.calibrate(tiny_dit(), calls)
    with pytest.raises(StatisticsError, match="did not say where"):
        ditprune.prune_(tiny_dit(), unplaced, timestep_weighting="log-decrease")
    with pytest.raises(StatisticsError, match="does not say where"):
        ditprune.prune_(
            tiny_dit(), None, saliency="magnitude", reconstruction="admm",
            timestep_weighting="log-decrease", batches=calls,
        )  # fmt: skip


def test_a_denoiser_that_is_refused_is_left_whole(tiny_dit, tiny_stats, same_bits) -> None:
    denoiser, dense = tiny_dit(), tiny_dit()
    with pytest.raises(RecipeError, match="none were given; pass batches"):
        ditprune.prune_(denoiser, tiny_stats, preset="best")
    for name, tensor in dense.state_dict().items():
        same_bits(denoiser.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"preset": "bestt"}, "preset='bestt' is unknown; did you mean 'best'"),
        ({"reconstruction": "adm"}, "reconstruction='adm' is unknown; did you mean 'admm'"),
        ({"allocation": "even"}, "allocation='even' is unknown"),
        ({"mask": "reconstruction"}, "needs a reconstruction that chooses the mask"),
        (
            {"reconstruction": "admm", "mask": "refinement"},
            "mask refinement needs a refinement of at least 2 steps; pass refinement distill",
        ),
        (
            {"preset": "best", "refinement": Distill(num_steps=1)},
            "mask refinement needs a refinement of at least 2 steps",
        ),
        (
            {"preset": "best", "pattern": "2:4", "mask": "refinement"},
            "mask refinement and pattern exclude",
        ),
        ({"refinement": Distill(held_back=0.1)}, "held_back 0.1 is the share that the refinement"),
        ({"packages": 2}, "packages=2 says in which steps"),
        ({"packages": 0, "reconstruction": "obs"}, "packages=0: expected at least 1"),
        ({"packages": True, "reconstruction": "obs"}, "packages True"),
        ({"mask": "none"}, "mask='none' is unknown"),
        ({"timestep_weighting": "log"}, "timestep_weighting='log'"),
        ({"refinement": "distil"}, "refinement='distil' is unknown; did you mean 'distill'"),
        ({"pattern": "2:4", "allocation": "owl"}, "allocation owl and pattern exclude"),
        (
            {"reconstruction": "admm", "reconstruction_constants": {"rho": 1}},
            "constant 'rho' does not apply",
        ),
        ({"refinement_constants": {"num_steps": 9}}, "refinement none takes no constants"),
        ({"reconstruction": 3}, "reconstruction=3: expected a name"),
        ({"refinement": build().reconstruction}, "refinement Nothing"),
        (
            {"saliency": "magnitude", "timestep_weighting": "log-decrease"},
            "timestep_weighting log-decrease weights the inputs",
        ),
    ],
    ids=str,
)
def test_recipes_that_cannot_be(words, match) -> None:
    with pytest.raises(RecipeError, match=match):
        build(**words)


def test_batches_that_nobody_would_read_are_refused(tiny_dit, tiny_stats, calls) -> None:
    for words in ({}, {"allocation": "owl"}):
        with pytest.raises(RecipeError, match="batches: this recipe updates no weights"):
            ditprune.prune_(tiny_dit(), tiny_stats, batches=calls, **words)


def test_memory_for_grams_that_nobody_collects_is_refused(
    tiny_dit, tiny_stats, calls, same_bits
) -> None:
    denoiser, dense = tiny_dit(), tiny_dit()
    for words in ({}, {"allocation": "owl"}, {"allocation": "sensitivity", "batches": calls}):
        with pytest.raises(RecipeError, match="max_gram_bytes: this recipe collects no Grams"):
            ditprune.prune_(denoiser, tiny_stats, max_gram_bytes=10**9, **words)
    for name, tensor in dense.state_dict().items():
        same_bits(denoiser.state_dict()[name], tensor)


def test_the_refinement_chooses_some_of_the_mask(tiny_dit, tiny_stats, calls) -> None:
    """Not what the reconstruction alone would choose, and no worse on the calls it was given."""
    words = {"reconstruction": "admm", "allocation": "sensitivity", "sparsity": 0.6}
    settings = Distill(num_steps=100, learning_rate=1e-3, batch_size=4)
    denoisers = {}
    for mask in ("reconstruction", "refinement"):
        denoisers[mask] = tiny_dit()
        ditprune.prune_(
            denoisers[mask], tiny_stats, mask=mask, refinement=settings, batches=calls, **words
        )
    one, two = (dict(denoisers[mask].named_parameters()) for mask in denoisers)
    assert any(not torch.equal(one[name] == 0, two[name] == 0) for name in one)
    plain = tiny_dit()
    ditprune.prune_(plain, tiny_stats, mask="reconstruction", batches=calls, **words)
    dense = tiny_dit()
    assert error(denoisers["refinement"], dense, calls) < error(plain, dense, calls)


def test_a_refinement_that_does_not_help_is_dropped(tiny_dit, tiny_stats, calls, same_bits) -> None:
    """At a rate that destroys the weights: what is left is the reconstruction at the full share."""
    words = {"reconstruction": "admm", "allocation": "sensitivity", "sparsity": 0.6}
    wild, plain = tiny_dit(), tiny_dit()
    settings = Distill(num_steps=30, learning_rate=10, batch_size=4)
    outcome = ditprune.prune_(
        wild, tiny_stats, mask="refinement", refinement=settings, batches=calls, **words
    )
    own = ditprune.prune_(plain, tiny_stats, mask="reconstruction", batches=calls, **words)
    for name, tensor in plain.state_dict().items():
        same_bits(wild.state_dict()[name], tensor)
    assert outcome.targets == own.targets


def test_packages_see_what_the_earlier_ones_leave(tiny_dit, tiny_stats, calls, same_bits) -> None:
    """The first two blocks as without packages, the third fitted to its new inputs."""
    even, turns = tiny_dit(), tiny_dit()
    ditprune.prune_(even, tiny_stats, 0.7, reconstruction="admm", batches=calls)
    ditprune.prune_(turns, tiny_stats, 0.7, reconstruction="admm", packages=2, batches=calls)
    differs = set()
    for name, tensor in even.named_parameters():
        if not torch.equal(turns.get_parameter(name), tensor):
            differs.add(name.split(".")[1])
    assert differs == {"2"}
    name = "transformer_blocks.2.ff.net.2.weight"
    dense = tiny_dit()

    def inputs(denoiser: nn.Module) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        layer = denoiser.get_submodule(name.removesuffix(".weight"))
        handle = layer.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].flatten(0, -2))
        )
        predictions(denoiser, calls)
        handle.remove()
        return torch.cat(seen)

    # What it was fitted to: the earlier blocks pruned, its own block dense.
    mixed = tiny_dit()
    own = {n: t for n, t in dense.state_dict().items() if n.startswith("transformer_blocks.2.")}
    mixed.load_state_dict({**turns.state_dict(), **own})
    tokens = inputs(mixed)
    losses = [
        ((tokens @ (one.get_parameter(name) - dense.get_parameter(name)).T).square().sum().item())
        for one in (even, turns)
    ]
    assert losses[1] < losses[0]


def test_the_best_preset_of_a_pattern_keeps_every_layers_count() -> None:
    assert build(preset="best").allocation == "proxy"
    assert build(preset="best").mask == "refinement"
    assert build(preset="best", pattern="2:4").allocation == "uniform"
    assert build(preset="best", pattern="2:4").mask == "reconstruction"
    assert build(preset="best", allocation="owl").allocation == "owl"
    assert build(preset="paper") == build()


def test_the_dense_module_is_not_the_pruned_one(tiny_dit, tiny_stats, calls) -> None:
    """Refinement compares with what the denoiser was, not with what it becomes."""
    denoiser = tiny_dit()
    before = copy.deepcopy(denoiser)
    settings = Distill(num_steps=80, learning_rate=2e-3, batch_size=4, mixing=0)
    ditprune.prune_(denoiser, tiny_stats, 0.3, refinement=settings, batches=calls)
    plain = tiny_dit()
    ditprune.prune_(plain, tiny_stats, 0.3)
    assert error(denoiser, before, calls) < 0.5 * error(plain, before, calls)
