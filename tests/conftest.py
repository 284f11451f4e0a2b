"""What several tests share: small real denoisers whose weights hide nothing, and their calls."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn

import isolation
import shape_checks
from folders import save_pipeline
from original_dit import OriginalDiT

isolation.install()
shape_checks.install()
hypothesis.settings.register_profile(
    "ditprune", deadline=None, derandomize=True, database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)  # fmt: skip
hypothesis.settings.load_profile("ditprune")


def pytest_collection_finish() -> None:
    """To go through all that was imported takes a quarter of a second, each time."""
    gc.collect()
    gc.freeze()


@torch.no_grad()
def redraw_(denoiser: nn.Module, seed: int) -> nn.Module:
    """Every parameter from a seeded normal; the rows of adaLN differ in scale as in trained models.

    A fresh DiT has adaLN weights of zero: its blocks are the identity and half of all bugs hide.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        if "norm1.linear.weight" in name or "adaLN_modulation.1.weight" in name:
            spread = torch.randn(parameter.shape[0], 1, generator=generator)
            parameter.mul_(0.3 * (1.2 * spread).exp())
    return denoiser.eval()


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_dit() -> Callable[..., nn.Module]:
    """Makes a diffusers DiT, of three blocks; the same seed gives the same bits."""
    from diffusers import DiTTransformer2DModel

    def make(seed: int = 0, num_layers: int = 3) -> nn.Module:
        denoiser = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=num_layers,
            in_channels=4,
            out_channels=4,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
        return redraw_(denoiser, seed)

    return make


@pytest.fixture(scope="session")
def original_dit() -> Callable[..., nn.Module]:
    """Makes a small DiT written like the original, outside diffusers."""
    return lambda seed=0: redraw_(OriginalDiT(), seed)


@pytest.fixture(scope="session")
def batches() -> Callable[..., list[dict[str, Any]]]:
    """Makes denoiser calls: two rows each, timesteps over the whole range."""

    def make(denoiser: nn.Module, n: int = 3, seed: int = 0) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        original = isinstance(denoiser, OriginalDiT)
        latent, timestep, label = (
            ("x", "t", "y") if original else ("hidden_states", "timestep", "class_labels")
        )
        return [
            {
                latent: torch.randn(2, 4, 8, 8, generator=generator),
                timestep: torch.randint(0, 1000, (2,), generator=generator),
                label: torch.randint(0, 10, (2,), generator=generator),
            }
            for _ in range(n)
        ]

    return make


@pytest.fixture(scope="session")
def tiny_stats(tiny_dit: Callable[..., nn.Module], batches: Callable[..., Any]) -> Any:
    """Statistics of `tiny_dit()`; never changed by a test."""
    import ditprune

    denoiser = tiny_dit()
    return ditprune.calibrate(denoiser, batches(denoiser))


@pytest.fixture
def with_threads() -> Iterator[Callable[[int, Callable[[], Any]], Any]]:
    """Runs a function with a number of torch threads; the number is restored."""
    before = torch.get_num_threads()

    def run(num_threads: int, work: Callable[[], Any]) -> Any:
        torch.set_num_threads(num_threads)
        return work()

    yield run
    torch.set_num_threads(before)


@pytest.fixture
def same_bits() -> Callable[[Tensor, Tensor], None]:
    """Compares tensors bit for bit: signs of zero and NaN payloads count."""

    def check(actual: Tensor, expected: Tensor) -> None:
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        a, b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (actual, expected))
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    return check


@pytest.fixture(scope="session")
def tiny_pipeline(
    tiny_dit: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a pipeline around `tiny_dit()`; never changed by a test."""
    return save_pipeline(tiny_dit(), tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def own_pipeline(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to spoil."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))


@pytest.fixture
def ditprune(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs `ditprune …` in this process, off the network; gives exit code, stdout and stderr."""
    import huggingface_hub.constants

    from ditprune.cli.main import run
    from ditprune.reporting import bars

    monkeypatch.setattr(bars, "_QUIET_S", math.inf)  # however slow the machine
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def call(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
