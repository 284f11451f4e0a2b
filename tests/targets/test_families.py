"""Every transformer denoiser of diffusers, small: targets, calibration, pruning."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

import ditprune
from ditprune.calibration.reach import unused
from ditprune.errors import ModelError
from ditprune.targets.coverage import left_out
from ditprune.targets.discover import discover
from tiny_denoisers import (
    FAMILIES,
    LEFT_OUT,
    NAMED_LIKE_A_DENOISER,
    WITHOUT_GRADIENTS,
    WRITTEN_FOR,
    Draw,
    Family,
    exported,
)

# Warnings of diffusers and torch about their own code paths, raised by some constructors and calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype:UserWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]

every_family = pytest.mark.parametrize(
    "family", [FAMILIES[name] for name in exported(FAMILIES)], ids=lambda one: one.name
)


def calls_of(family: Family) -> list[dict[str, Any]]:
    return [family.call(Draw(seed)) for seed in (1, 2)]


def uncalled_of(family: Family, names: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, glob) for glob in family.uncalled)]


def calibrated(family: Family, denoiser: nn.Module) -> ditprune.Statistics:
    """Statistics of two calls; warns of what they leave out, and of nothing else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=FutureWarning)
        stats = ditprune.calibrate(denoiser, calls_of(family))
    said = [str(one.message) for one in caught]
    never = [line for line in said if "targets were never called in calibration" in line]
    untold = [line for line in said if "not with gradients" in line]
    assert len(never) == bool(stats.never_called)
    assert len(untold) == (family.name in WITHOUT_GRADIENTS)
    return stats


def tensors_of(denoiser: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and every buffer, those outside the state dict too."""
    named = [*denoiser.named_parameters(), *denoiser.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors of an output, whatever it is wrapped in."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from tensors_in(item)
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors_in(item)


@torch.no_grad()
def outputs_of(family: Family, denoiser: nn.Module) -> list[Tensor]:
    return list(tensors_in(denoiser(**family.call(Draw(0)))))


def sums_of_squares(family: Family, denoiser: nn.Module) -> dict[str, Tensor]:
    """Of every input channel of every matrix that is called, with one plain hook for each."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def see(layer: nn.Module, args: tuple[Tensor]) -> None:
            channels = -1 if isinstance(layer, nn.Linear) else 1
            squares = args[0].double().square().movedim(channels, -1).flatten(0, -2).sum(0)
            sums[name] = sums.get(name, 0) + squares

        return see

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]
    with torch.no_grad():
        for call in calls_of(family):
            denoiser(**call)
    for handle in handles:
        handle.remove()
    return sums


def test_every_transformer_of_diffusers_is_here_or_left_out_for_a_reason() -> None:
    import diffusers
    import diffusers.models

    exported = sorted(set(dir(diffusers)) & set(dir(diffusers.models)))
    classes = {name: getattr(diffusers, name) for name in exported if name[0].isupper()}
    denoisers = {
        name
        for name, one in classes.items()
        if isinstance(one, type)
        and issubclass(one, nn.Module)
        and (
            NAMED_LIKE_A_DENOISER.search(name)
            or one.__module__.startswith("diffusers.models.transformers.")
        )
    }
    assert len(denoisers) > 50
    assert denoisers - FAMILIES.keys() - LEFT_OUT.keys() == set()
    if Version(diffusers.__version__) >= Version(WRITTEN_FOR):
        assert (FAMILIES.keys() | LEFT_OUT.keys()) - classes.keys() == set()
    assert FAMILIES.keys() & LEFT_OUT.keys() == set()


@every_family
def test_the_targets_are_those_counted_by_eye(family: Family) -> None:
    denoiser = family.make()
    targets = discover(denoiser)
    assert Counter(target.block for target in targets.values()) == family.expected
    for name, target in targets.items():
        layer = denoiser.get_submodule(name)
        assert isinstance(layer, {"linear": nn.Linear, "convolution": nn.Conv2d}[target.kind])
        assert not target.auxiliary
        assert name.startswith(f"{target.block}.")
        assert target.depth == int(target.block.rsplit(".", 1)[1])
        assert target.shape == tuple(layer.weight.shape[:2])
        assert target.num_weights == layer.weight.numel()


@every_family
def test_the_blocks_outside_the_trunk_are_added_where_asked_for(family: Family) -> None:
    denoiser = family.make()
    trunk, all_targets = discover(denoiser), discover(denoiser, auxiliary=True)
    added = {name: target for name, target in all_targets.items() if target.auxiliary}
    assert Counter(target.block for target in added.values()) == family.expected_auxiliary
    assert {name: target for name, target in all_targets.items() if name not in added} == trunk


@every_family
def test_every_matrix_in_the_blocks_is_a_target_or_left_out_for_a_reason(family: Family) -> None:
    denoiser = family.make()
    inside = {
        id(parameter): parameter.numel()
        for path in (*family.expected, *family.expected_auxiliary)
        for parameter in denoiser.get_submodule(path).parameters()
        if parameter.ndim >= 2
    }
    for auxiliary in (False, True):
        targets = discover(denoiser, auxiliary)
        dense = left_out(denoiser, targets)
        counted = [part.num_weights for part in (*targets.values(), *dense.values())]
        assert sum(counted) == sum(inside.values())
        assert min(counted) > 0
        assert not dense.keys() & targets.keys()
        assert all(name == part.name and part.reason for name, part in dense.items())


@every_family
def test_the_layers_that_run_in_vain_are_those_seen_by_eye(family: Family) -> None:
    denoiser = family.make()
    targets = discover(denoiser)
    if family.name in WITHOUT_GRADIENTS:
        with pytest.raises(ModelError, match="not with gradients"):
            unused(denoiser, family.call(Draw(1)), targets)
    else:
        assert unused(denoiser, family.call(Draw(1)), targets) == family.unused


@every_family
def test_the_targets_are_found_on_the_meta_device_too(family: Family) -> None:
    """From the configuration alone, as for a folder."""
    import diffusers

    with torch.device("meta"):
        empty = getattr(diffusers, family.name)(**family.config)
    assert list(discover(empty).items()) == list(discover(family.make()).items())


@every_family
def test_calibration_sees_all_that_enters_the_targets(family: Family) -> None:
    denoiser = family.make()
    stats = calibrated(family, denoiser)
    targets = discover(denoiser, auxiliary=True)
    trunk = [name for name, target in targets.items() if not target.auxiliary]
    assert [name for name in stats.never_called if name in trunk] == uncalled_of(family, trunk)
    assert stats.unused == family.unused
    assert stats.num_calls == 2
    sums = sums_of_squares(family, denoiser)
    assert set(stats.column_norms) == set(targets) & set(sums)
    for name in stats.column_norms:
        norm = stats.column_norm(name)
        assert norm.isfinite().all()
        assert norm.any()
        torch.testing.assert_close(norm.double(), sums[name].sqrt(), rtol=1e-5, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in denoiser.modules())


@every_family
def test_pruning_is_exact_and_leaves_all_else_alone(family: Family, same_bits) -> None:
    denoiser = family.make()
    stats = calibrated(family, denoiser)
    before = tensors_of(denoiser)
    dense = outputs_of(family, denoiser)
    outcome = ditprune.prune_(denoiser, stats, sparsity=0.5, saliency="stw")

    targets = discover(denoiser)
    uncalled = uncalled_of(family, targets)
    assert set(outcome.skipped) == set(uncalled)
    assert set(outcome.targets) == set(targets) - set(uncalled)
    after = tensors_of(denoiser)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        target = outcome.targets.get(name.removesuffix(".weight"))
        if target is None:
            same_bits(after[name], tensor)
            continue
        zeros = after[name] == 0
        rows = zeros if target.granularity == "channel" else zeros.reshape(1, -1)
        assert (rows.sum(1) == round(0.5 * rows.shape[1])).all()
        assert target.num_asked == target.num_pruned == target.num_zero == zeros.sum()
        same_bits(after[name][~zeros], tensor[~zeros])

    pruned = outputs_of(family, denoiser)
    assert len(pruned) == len(dense) > 0
    assert all(tensor.isfinite().all() for tensor in (*dense, *pruned))
    assert not all(torch.allclose(a, b) for a, b in zip(dense, pruned, strict=True))
