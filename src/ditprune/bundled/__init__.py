"""What ships with the package: a small trained DiT pipeline and its judge, and prompts.

`pipeline/` is a stock diffusers DiTPipeline folder; its README.md is the model card.
`prompts.txt` holds 128 prompts, one a line, for pipelines that draw what a text says.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ditprune.bundled.classifier import DigitClassifier

_HERE = Path(__file__).parent
PIPELINE = _HERE / "pipeline"
CLASSIFIER = _HERE / "classifier.safetensors"
REFERENCE = _HERE / "reference.safetensors"
PROMPTS = _HERE / "prompts.txt"


def load_classifier() -> DigitClassifier:
    """The bundled classifier, in eval mode on the CPU."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(CLASSIFIER))
    return classifier.eval()


def load_reference() -> dict[str, Tensor]:
    """Moments of the classifier's features over the 10,000 MNIST test images, for FID.

    Keys `sum` [64], `sum_outer` [64, 64] (float64) and `num_images` (int64).
    """
    return load_file(REFERENCE)


def load_prompts() -> list[str]:
    """128 prompts of many kinds, for calibrating a pipeline that draws prompts."""
    return PROMPTS.read_text(encoding="utf-8").splitlines()
