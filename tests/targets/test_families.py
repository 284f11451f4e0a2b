"""Every transformer denoiser of diffusers, small: targets, calibration, pruning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune.targets.discover import discover
from tiny_denoisers import FAMILIES, LEFT_OUT, NAMED_LIKE_A_DENOISER, Draw, Family

# Warnings of diffusers and torch about their own code paths, raised by some constructors and calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype:UserWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda one: one.name)


def calls_of(family: Family) -> list[dict[str, Any]]:
    return [family.call(Draw(seed)) for seed in (1, 2)]


def uncalled_of(family: Family, names: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, glob) for glob in family.uncalled)]


def calibrated(family: Family, denoiser: nn.Module) -> ditprune.Statistics:
    """Statistics of two calls; warns of the targets that they leave out, and only then."""
    if not family.uncalled:
        return ditprune.calibrate(denoiser, calls_of(family))
    with pytest.warns(UserWarning, match="targets were never called in calibration"):
        return ditprune.calibrate(denoiser, calls_of(family))


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
    """Of every input channel of every Linear that is called, with one plain hook for each."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def see(_module: nn.Module, args: tuple[Tensor]) -> None:
            squares = args[0].double().square().flatten(0, -2).sum(0)
            sums[name] = sums.get(name, 0) + squares

        return see

    linears = [(n, m) for n, m in denoiser.named_modules() if isinstance(m, nn.Linear)]
    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears]
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
    assert len(denoisers) > 70
    assert denoisers - FAMILIES.keys() - LEFT_OUT.keys() == set()
    assert (FAMILIES.keys() | LEFT_OUT.keys()) - classes.keys() == set()
    assert FAMILIES.keys() & LEFT_OUT.keys() == set()


@every_family
def test_the_targets_are_those_counted_by_eye(family: Family) -> None:
    denoiser = family.make()
    targets = discover(denoiser)
    assert Counter(target.block for target in targets.values()) == family.expected
    for name, target in targets.items():
        linear = denoiser.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        assert name.startswith(f"{target.block}.")
        assert target.depth == int(target.block.rsplit(".", 1)[1])
        assert target.shape == tuple(linear.weight.shape)


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
    targets = discover(denoiser)
    assert list(stats.never_called) == uncalled_of(family, targets)
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
