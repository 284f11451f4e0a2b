"""Denoisers that others wrote outside diffusers, through the public API as it is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune.calibration.reach import unused
from ditprune.targets.coverage import left_out
from ditprune.targets.discover import discover
from original_dit import OriginalDiT
from tiny_denoisers import Draw, redraw_

LIKE_TIMM = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")


@contextmanager
def bare_packages(*names: str) -> Iterator[None]:
    """Lets single modules of packages be imported without the packages' own `__init__`.

    Those import torchvision, of which PyPI has no build for a CPU torch on Linux. Nothing half
    imported stays behind.
    """
    roots = {name.partition(".")[0] for name in names}
    before = take_modules(roots)
    try:
        for name in names:
            spec = importlib.util.find_spec(name)
            if spec is None:
                pytest.skip(f"{name} is not installed")
            sys.modules[name] = importlib.util.module_from_spec(spec)
        yield
    finally:
        take_modules(roots)
        sys.modules.update(before)


def take_modules(roots: set[str]) -> dict[str, ModuleType]:
    """Removes and returns all imported modules of these packages."""
    taken = [name for name in sys.modules if name.partition(".")[0] in roots]
    return {name: sys.modules.pop(name) for name in taken}


def dit_ml() -> nn.Module:
    """Blocks alone, with the feed-forward of timm."""
    with bare_packages("dit_ml", "timm", "timm.layers", "timm.models"):
        # The class is its own; the module that dit_ml takes it from imports torchvision.
        vision = ModuleType("timm.models.vision_transformer")
        vision.Mlp = importlib.import_module("timm.layers.mlp").Mlp
        sys.modules[vision.__name__] = vision
        dit = importlib.import_module("dit_ml.dit")
        return dit.DiT(num_patches=16, hidden_size=32, depth=2, num_heads=2)


def dit_ml_call(draw: Draw) -> dict[str, Any]:
    return {"x": draw.normal(2, 16, 32), "t": draw.normal(2, 32)}


def smalldiffusion() -> nn.Module:
    """Its blocks are an `nn.Sequential` of its own, each norm has its own modulation."""
    with bare_packages("smalldiffusion"):
        dit = importlib.import_module("smalldiffusion.model_dit")
        labels = importlib.import_module("smalldiffusion.model").CondEmbedderLabel(32, 10)
        return dit.DiT(
            in_dim=8, channels=4, depth=2, head_dim=16, num_heads=2, cond_embed=labels
        )  # fmt: skip


def smalldiffusion_call(draw: Draw) -> dict[str, Any]:
    return {
        "x": draw.normal(2, 4, 8, 8),
        "sigma": 0.1 + draw.uniform(2),
        "cond": draw.integers(10, 2),
    }


def original_call(draw: Draw) -> dict[str, Any]:
    return {
        "x": draw.normal(2, 4, 8, 8),
        "t": draw.integers(1000, 2),
        "y": draw.integers(10, 2),
    }


SMALLDIFFUSION = (
    "norm1.modulation.proj.1", "attn.qkv", "attn.proj", "norm2.modulation.proj.1", "mlp.0",
    "mlp.2", "scale_modulation.proj.1",
)  # fmt: skip
every_foreigner = pytest.mark.parametrize(
    ("make", "call", "leaves"),
    [
        pytest.param(OriginalDiT, original_call, LIKE_TIMM, id="facebookresearch/DiT"),
        pytest.param(dit_ml, dit_ml_call, LIKE_TIMM, id="dit-ml"),
        pytest.param(smalldiffusion, smalldiffusion_call, SMALLDIFFUSION, id="smalldiffusion"),
    ],
)


@every_foreigner
def test_its_targets_are_the_linears_of_its_blocks(make, call, leaves) -> None:
    denoiser = make()
    targets = discover(denoiser)
    assert list(targets) == [f"blocks.{i}.{leaf}" for i in range(2) for leaf in leaves]
    assert {target.kind for target in targets.values()} == {"linear"}
    assert left_out(denoiser, targets) == {}


@every_foreigner
def test_calibration_sees_all_that_enters_them(make, call, leaves) -> None:
    denoiser = redraw_(make(), 0)
    inputs: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].clone())
        )
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    calls = [call(Draw(seed)) for seed in (1, 2)]
    with torch.no_grad():
        for one in calls:
            denoiser(**one)
    for handle in handles:
        handle.remove()
    stats = ditprune.calibrate(denoiser, calls)
    assert list(stats.column_norms) == list(discover(denoiser))
    for name in stats.column_norms:
        tokens = torch.cat([one.double().flatten(0, -2) for one in inputs[name]])
        torch.testing.assert_close(
            stats.column_norm(name).double(), tokens.norm(dim=0), rtol=1e-5, atol=1e-6
        )
        assert stats.num_tokens(name) == len(tokens)


@every_foreigner
def test_pruning_is_exact_and_leaves_all_else_alone(make, call, leaves, same_bits) -> None:
    denoiser = redraw_(make(), 0)
    stats = ditprune.calibrate(denoiser, [call(Draw(1))])
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    with torch.no_grad():
        dense = denoiser(**call(Draw(0)))
    outcome = ditprune.prune_(denoiser, stats, sparsity=0.5)
    assert list(outcome.targets) == list(discover(denoiser))
    for name, tensor in denoiser.state_dict().items():
        target = outcome.targets.get(name.removesuffix(".weight"))
        if target is None:
            same_bits(tensor, before[name])
            continue
        zeros = tensor == 0
        rows = zeros if target.granularity == "channel" else zeros.reshape(1, -1)
        assert (rows.sum(1) == round(0.5 * rows.shape[1])).all()
        same_bits(tensor[~zeros], before[name][~zeros])
    with torch.no_grad():
        pruned = denoiser(**call(Draw(0)))
    assert pruned.isfinite().all()
    assert not torch.allclose(pruned, dense)


@every_foreigner
def test_none_of_its_layers_runs_in_vain(make, call, leaves) -> None:
    denoiser = redraw_(make(), 0)
    assert unused(denoiser, call(Draw(0)), discover(denoiser)) == ()


def test_nothing_half_imported_stays_behind() -> None:
    dit_ml()
    smalldiffusion()
    assert not {"dit_ml", "timm", "smalldiffusion"} & set(sys.modules)
