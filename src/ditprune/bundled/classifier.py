"""The small digit classifier that reads samples and gives this project's FID its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGE_SIZE = 32
NUM_FEATURES = 64
NUM_CLASSES = 10


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class DigitClassifier(nn.Module):
    """A convolutional classifier of 32×32 grey digits; not InceptionV3, and no figure here is.

    The 64 pooled features before the last layer are the space in which `evaluate` measures FID
    for the bundled model.
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


def predict(classifier: DigitClassifier, images: Tensor, batch_size: int = 500) -> Tensor:
    """The class read in each image: int64 [N] for images [N, 1, H, W] in [0, 1]."""
    with torch.inference_mode():
        return torch.cat([classifier(batch).argmax(dim=1) for batch in images.split(batch_size)])
