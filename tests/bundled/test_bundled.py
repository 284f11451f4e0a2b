"""What ships with the package: stock, small, data only."""

from __future__ import annotations

import json

import pytest
import torch

from ditprune import bundled
from ditprune.bundled import NUM_FEATURES, predict
from ditprune.targets.discover import discover

MB = 1_000_000


def test_the_pipeline_is_stock_diffusers() -> None:
    from diffusers import DDIMScheduler, DiTPipeline

    pipeline = DiTPipeline.from_pretrained(bundled.PIPELINE)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.labels == {str(i): i for i in range(10)}
    assert not pipeline.transformer.training
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(i) for i in range(2)]
    images = pipeline([3, 5], num_inference_steps=2, generator=generator, output_type="np").images
    assert images.shape == (2, 32, 32, 1)
    assert 0 <= images.min() < images.max() <= 1
    num_blocks = len(pipeline.transformer.transformer_blocks)
    assert num_blocks >= 8
    assert sum(p.numel() for p in pipeline.transformer.parameters()) >= 3_000_000
    assert len(discover(pipeline.transformer)) == 7 * num_blocks
    for name, parameter in pipeline.transformer.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.count_nonzero() > 0, name


def test_it_is_small() -> None:
    files = [file for file in bundled.PIPELINE.rglob("*") if file.is_file()]
    others = [bundled.CLASSIFIER, bundled.REFERENCE]
    assert sum(file.stat().st_size for file in [*files, *others]) <= 14 * MB
    assert bundled.CLASSIFIER.stat().st_size <= MB


def test_it_is_data_only() -> None:
    folder = bundled.PIPELINE.parent
    files = [f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    code = {file for file in files if file.suffix == ".py"}
    assert {file.parent for file in code} == {folder}
    data = {file.suffix for file in files if file not in code}
    assert data <= {".safetensors", ".json", ".md", ".txt"}


def test_its_configs_name_no_place_on_any_machine() -> None:
    for file in bundled.PIPELINE.rglob("*.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        assert not str(config.get("_name_or_path", "")).startswith("/"), file.name


def test_the_classifier_loads_ready_to_read() -> None:
    classifier = bundled.load_classifier()
    assert not classifier.training
    images = torch.rand(7, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert classifier.features(images).shape == (7, NUM_FEATURES)
        assert classifier(images).shape == (7, 10)
        whole = classifier(images).argmax(1)
    torch.testing.assert_close(predict(classifier, images, batch_size=3), whole)


def test_the_reference_holds_moments_of_ten_thousand_images() -> None:
    reference = bundled.load_reference()
    assert reference["num_images"].item() == 10_000
    mean = reference["sum"].double() / 10_000
    covariance = reference["sum_outer"].double() / 10_000 - mean[:, None] * mean
    assert mean.shape == (NUM_FEATURES,)
    assert covariance.shape == (NUM_FEATURES, NUM_FEATURES)
    torch.testing.assert_close(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-6
    assert mean.min() >= 0  # features come after a ReLU


@pytest.mark.parametrize("key", ["sum", "sum_outer"])
def test_the_reference_is_in_double(key) -> None:
    assert bundled.load_reference()[key].dtype == torch.float64
