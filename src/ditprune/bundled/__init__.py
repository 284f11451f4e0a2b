"""The files that ship with the package: a small trained DiT pipeline, its classifier, and prompts.

`pipeline/` is a stock diffusers DiTPipeline folder; its README.md is the model card.
`prompts.txt` holds 128 prompts, one on each line, for pipelines that draw prompts.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_HERE = Path(__file__).parent
PIPELINE = _HERE / "pipeline"
CLASSIFIER = _HERE / "classifier.safetensors"
REFERENCE = _HERE / "reference.safetensors"
PROMPTS = _HERE / "prompts.txt"

IMAGE_SIZE = 32
NUM_FEATURES = 64
NUM_CLASSES = 10


class DigitClassifier(nn.Module):
    """A convolutional classifier of 32×32 grey digits.

    `evaluate` measures FID of the bundled model in its 64 pooled features before the last layer.
    They are not InceptionV3's, and no number from them compares with published FIDs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _convolution(1, 16),
            _convolution(16, 32),
            nn.MaxPool2d(2),
            _convolution(32, 32),
            _convolution(32, NUM_FEATURES),
            nn.MaxPool2d(2),
            _convolution(NUM_FEATURES, NUM_FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [N, 64] of grey images [N, 1, H, W] with values in [0, 1]."""
        return self.trunk(images * 2 - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [N, 10] of grey images [N, 1, H, W] with values in [0, 1]."""
        return self.head(self.features(images))


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def predict(classifier: DigitClassifier, images: Tensor, batch_size: int = 500) -> Tensor:
    """The class read in each image: int64 [N] for images [N, 1, H, W] in [0, 1]."""
    with torch.inference_mode():
        return torch.cat([classifier(batch).argmax(dim=1) for batch in images.split(batch_size)])


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
    """128 prompts of many kinds, to calibrate a pipeline that draws prompts."""
    return PROMPTS.read_text(encoding="utf-8").splitlines()
