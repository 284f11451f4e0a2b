"""Where a denoiser runs: words that are refused, and numbers and devices that act."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from ditprune.calibration.collect import calibrate_folder
from ditprune.calibration.sample import Sampling
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.statistics_file import Statistics, read_statistics_file
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement, parse_size
from ditprune.errors import RecipeError
from ditprune.evaluation.compare import compare as evaluate
from ditprune.evaluation.protocol import Protocol

SAMPLING = Sampling(6, num_inference_steps=3, batch_size=3)
HAS_CUDA, HAS_MPS = torch.cuda.is_available(), torch.backends.mps.is_available()
ELSEWHERE = [
    pytest.param("cuda", marks=pytest.mark.skipif(not HAS_CUDA, reason="torch finds no CUDA")),
    pytest.param("mps", marks=pytest.mark.skipif(not HAS_MPS, reason="torch finds no MPS")),
]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"device": "gpu"}, "device='gpu': did you mean 'cpu'"),
        ({"device": "cuda:x"}, "device='cuda:x'"),
        ({"device": "cpu:1"}, "device='cpu:1'"),
        ({"device": "cuda:99"}, "device cuda:99: torch finds none on this machine; it has cpu"),
        ({"dtype": "float8"}, "dtype='float8': .*float"),
        ({"max_memory": "8"}, "max_memory='8': expected a size such as 8GB or 500MB"),
        ({"max_memory": "0GB"}, "max_memory='0GB'"),
        ({"max_memory": "-1GB"}, "max_memory='-1GB'"),
        ({"max_memory": "1TB"}, "max_memory='1TB'"),
    ],
    ids=str,
)
def test_unknown_words_are_refused(words: dict[str, str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        Placement.of(**words)


@pytest.mark.parametrize(("name", "is_there"), [("cuda", HAS_CUDA), ("mps", HAS_MPS)])
def test_a_device_that_is_not_there_is_refused(name: str, is_there: bool) -> None:
    if is_there:
        pytest.skip(f"torch finds {name}")
    with pytest.raises(RecipeError, match=f"device {name}: torch finds none on this machine"):
        Placement.of(name)


def test_sizes_are_decimal_or_binary() -> None:
    sizes = {"8GB": 8 * 10**9, "1.5gb": 1_500_000_000, "500 MB": 500_000_000, "2GiB": 2 * 2**30,
             "3KB": 3000, " 1KiB ": 1024}  # fmt: skip
    assert {text: parse_size(text) for text in sizes} == sizes
    assert Placement.of() == Placement("cpu", torch.float32, None)


def calibrated(model: Any, out: Any, **words: str) -> Statistics:
    calibrate_folder(locate(str(model)), out, SAMPLING, placement=Placement.of(**words))
    (statistics,) = read_statistics_file(out).values()
    return statistics


def assert_near(one: Statistics, other: Statistics, relative: float) -> None:
    assert one.column_norms.keys() == other.column_norms.keys()
    for name in other.column_norms:
        a, b = one.column_norm(name), other.column_norm(name)
        assert ((a - b).norm() / b.norm()).item() < relative, name


@pytest.fixture
def _same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in every dtype: torch 2.6 draws other numbers in bfloat16 than in float32."""
    from diffusers.pipelines.dit import pipeline_dit

    draw = pipeline_dit.randn_tensor

    def rounded(*args: Any, dtype: torch.dtype, **words: Any) -> torch.Tensor:
        return draw(*args, dtype=torch.float32, **words).to(dtype)

    monkeypatch.setattr(pipeline_dit, "randn_tensor", rounded)


@pytest.mark.usefixtures("_same_noise")
def test_bfloat16_calibrates_near_float32(tiny_pipeline, tmp_path) -> None:
    low = calibrated(tiny_pipeline, tmp_path / "low", dtype="bfloat16")
    full = calibrated(tiny_pipeline, tmp_path / "full")
    assert_near(low, full, 0.05)
    assert (tmp_path / "low").read_bytes() != (tmp_path / "full").read_bytes()
    pipeline = load_pipeline(locate(str(tiny_pipeline)), Placement.of(dtype="bfloat16"))
    assert {p.dtype for p in pipeline.transformer.parameters()} == {torch.bfloat16}


def evaluated(model: Any, out: Any, **words: str) -> dict[str, Any]:
    """The pipeline against itself."""
    protocol = Protocol(4, num_inference_steps=2, num_held_out=4, batch_size=2)
    other = locate(str(model))
    evaluate(other, [("same", other)], out, protocol, placement=Placement.of(**words))
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_bfloat16_evaluates(tiny_pipeline, tmp_path) -> None:
    results = evaluated(tiny_pipeline, tmp_path / "e", dtype="bfloat16")
    assert results["protocol"]["dtype"] == "bfloat16"
    same = results["models"][1]
    assert same["metrics"]["relative_error"]["value"] == 0
    assert same["metrics"]["ssim"]["value"] == pytest.approx(1)


@pytest.mark.parametrize("device", ELSEWHERE)
def test_another_device_calibrates_near_the_cpu_and_evaluates(
    device: str, tiny_pipeline, tmp_path
) -> None:
    there = calibrated(tiny_pipeline, tmp_path / "there", device=device)
    assert_near(there, calibrated(tiny_pipeline, tmp_path / "here"), 0.01)
    results = evaluated(tiny_pipeline, tmp_path / "e", device=device)
    assert results["protocol"]["device"].startswith(device)
    assert results["models"][1]["metrics"]["relative_error"]["value"] == 0
