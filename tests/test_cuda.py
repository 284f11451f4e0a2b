"""On a CUDA device: calibrating, planning, pruning and adjusting, each by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune as package
import tiny_denoisers
from on_cuda import DEVICE, distill, far, marks, moved, output, placed
from tiny_denoisers import Draw

pytestmark = marks
HALVES = (torch.bfloat16, torch.float16)
FAMILIES = (
    "DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel",
    "FluxTransformer2DModel", "QwenImageTransformer2DModel", "WanTransformer3DModel",
)  # fmt: skip
WORDS: dict[str, dict[str, Any]] = {
    "stw": {},
    "stw, cag with its own threshold": {"cag_threshold": 0.5},
    "wanda per channel": {"saliency": "wanda", "granularity": "channel"},
    "ria 2:4": {"saliency": "ria", "pattern": "2:4"},
    "magnitude per layer": {"saliency": "magnitude", "granularity": "layer"},
}
ADJUSTING: dict[str, Callable[[], dict[str, Any]]] = {
    "obs": lambda: {"reconstruction": "obs"},
    "obs, its mask": lambda: {"reconstruction": "obs", "mask": "reconstruction"},
    "admm": lambda: {"reconstruction": "admm"},
    "admm, its mask": lambda: {"reconstruction": "admm", "mask": "reconstruction"},
    "admm 2:4": lambda: {"reconstruction": "admm", "pattern": "2:4"},
    "admm, packages": lambda: {"reconstruction": "admm", "packages": 2},
    "admm, owl": lambda: {"reconstruction": "admm", "allocation": "owl"},
    "admm, proxy": lambda: {"reconstruction": "admm", "allocation": "proxy"},
    "admm, sensitivity": lambda: {"reconstruction": "admm", "allocation": "sensitivity"},
    "owl alone": lambda: {"allocation": "owl"},
    "proxy alone": lambda: {"allocation": "proxy"},
    "sensitivity alone": lambda: {"allocation": "sensitivity"},
    "distill alone": lambda: {"refinement": distill()},
    "best": lambda: {"preset": "best", "refinement": distill(held_back=0.2)},
}


def norms_of(stats: package.Statistics) -> dict[str, Tensor]:
    return {name: stats.column_norm(name).float().cpu() for name in stats.column_norms}


def check_close(found: package.Statistics, expected: package.Statistics, most: float) -> None:
    """Each layer's norms by themselves: ‖a − b‖ / ‖b‖."""
    assert found.column_norms.keys() == expected.column_norms.keys()
    ours, theirs = norms_of(found), norms_of(expected)
    far = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours}
    assert max(far.values()) <= most, max(far.items(), key=lambda item: item[1])


def masks(denoiser: nn.Module, outcome: package.Outcome) -> dict[str, Tensor]:
    return {name: (denoiser.get_parameter(f"{name}.weight") == 0).cpu() for name in outcome.targets}


@pytest.fixture(scope="module")
def stats_in(tiny_dit, batches) -> Callable[[torch.dtype], package.Statistics]:
    """Statistics of `tiny_dit()` with its weights rounded to a dtype, by arithmetic of float32."""

    @cache
    def make(dtype: torch.dtype) -> package.Statistics:
        denoiser = tiny_dit().to(dtype).float()
        return package.calibrate(denoiser, batches(denoiser))

    return make


# --- Calibrating ---


@pytest.mark.parametrize("name", FAMILIES)
def test_statistics_of_a_family_are_those_of_the_cpu(name) -> None:
    family = tiny_denoisers.FAMILIES[name]
    calls = [family.call(Draw(seed)) for seed in range(2)]
    expected = package.calibrate(family.make(), calls)
    found = package.calibrate(family.make().to(DEVICE), [placed(call) for call in calls])
    check_close(found, expected, 1e-4)
    assert found.fingerprints == expected.fingerprints
    assert found.unused == expected.unused


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_statistics_in_half_precision_are_near_those_in_full(
    dtype, tiny_dit, batches, tiny_stats
) -> None:
    denoiser = tiny_dit().to(DEVICE, dtype)
    calls = [placed(call, dtype=dtype) for call in batches(tiny_dit())]
    check_close(package.calibrate(denoiser, calls), tiny_stats, 0.05)


def test_statistics_under_autocast_are_near_those_without(tiny_dit, batches, tiny_stats) -> None:
    denoiser, calls = tiny_dit().to(DEVICE), [placed(call) for call in batches(tiny_dit())]
    with torch.autocast(DEVICE, torch.bfloat16):
        found = package.calibrate(denoiser, calls)
    check_close(found, tiny_stats, 0.05)


# --- Pruning by scores ---


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_masks_are_those_of_the_cpu(words, dtype, tiny_dit, stats_in) -> None:
    here, there, stats = tiny_dit().to(dtype), tiny_dit().to(DEVICE, dtype), stats_in(dtype)
    expected = package.prune_(here, stats, **words)
    outcome = package.prune_(there, moved(stats, DEVICE), **words)
    ours, theirs = masks(there, outcome), masks(here, expected)
    differing = sum(int((ours[name] != theirs[name]).sum()) for name in theirs)
    total = sum(mask.numel() for mask in theirs.values())
    assert differing <= 1e-3 * total, f"{differing} of {total}"  # the last bit of a power
    for name, one in outcome.targets.items():
        assert one.num_pruned == expected.targets[name].num_pruned, name
        weight = there.get_parameter(f"{name}.weight")
        assert (weight.device.type, weight.dtype) == (torch.device(DEVICE).type, dtype)


def test_statistics_of_the_cpu_serve_a_denoiser_on_the_device(tiny_dit, tiny_stats) -> None:
    """As they are when read from a file."""
    outcome = package.prune_(tiny_dit().to(DEVICE), tiny_stats)
    assert outcome.sparsity == pytest.approx(0.5, abs=0.01)


def test_statistics_of_the_device_serve_a_denoiser_on_the_cpu(tiny_dit, tiny_stats) -> None:
    outcome = package.prune_(tiny_dit(), moved(tiny_stats, DEVICE))
    assert outcome.sparsity == pytest.approx(0.5, abs=0.01)


def test_a_plan_is_that_of_the_cpu(tiny_dit, tiny_stats) -> None:
    expected = package.inspect(tiny_dit(), tiny_stats)
    found = package.inspect(tiny_dit().to(DEVICE), moved(tiny_stats, DEVICE))
    for name, target in expected.targets.items():
        assert found.targets[name].g_out == pytest.approx(target.g_out, rel=1e-4), name
        assert found.targets[name].num_prune == target.num_prune, name


# --- Adjusting ---


@pytest.mark.parametrize("make", ADJUSTING.values(), ids=ADJUSTING)
def test_a_recipe_that_adjusts_is_as_good_as_on_the_cpu(
    make, tiny_dit, batches, tiny_stats
) -> None:
    calls = batches(tiny_dit(), 4)
    given = {} if make() == {"allocation": "owl"} else {"batches": calls}
    here, there = tiny_dit(), tiny_dit().to(DEVICE)
    expected = package.prune_(here, tiny_stats, **given, **make())
    if given:
        given = {"batches": [placed(call) for call in calls]}
    outcome = package.prune_(there, moved(tiny_stats, DEVICE), **given, **make())
    assert outcome.sparsity == pytest.approx(expected.sparsity, abs=1e-3)
    held_out = batches(tiny_dit(), 5)[4]
    dense = output(tiny_dit(), held_out)
    error = far(output(there, placed(held_out)), dense)
    assert error <= 1.3 * far(output(here, held_out), dense) + 0.01


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["admm, its mask", "obs", "sensitivity alone", "best"])
def test_a_recipe_that_adjusts_runs_in_half_precision(
    name, dtype, tiny_dit, batches, stats_in
) -> None:
    denoiser = tiny_dit().to(DEVICE, dtype)
    calls = [placed(call, dtype=dtype) for call in batches(tiny_dit(), 4)]
    stats = moved(stats_in(dtype), DEVICE)
    outcome = package.prune_(denoiser, stats, batches=calls, **ADJUSTING[name]())
    assert outcome.sparsity == pytest.approx(0.5, abs=0.01)
    assert output(denoiser, calls[0]).isfinite().all()
