"""The network that reads pictures: what every pixel shows, and features of the whole.

Axes: N pictures, H and W pixels, C colours and S shapes (each with the ground first), D features,
L labels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from testbeds.drawing import COLOURS, SHAPES, SIZE

WEIGHTS = Path(__file__).with_name("judge.safetensors")
NUM_COLOURS, NUM_SHAPES = len(COLOURS) + 1, len(SHAPES) + 1
NUM_FEATURES = 96
NUM_LABELS = len(COLOURS) * len(SHAPES)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Reader(nn.Module):
    """Tell every pixel's colour and shape, and which coloured shapes a picture holds.

    The scales are 1/2, 1/4 and 1/8 of the picture; `describe` pools the features of the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_half = nn.Sequential(nn.PixelUnshuffle(2), _block(12, 32), _block(32, 32))
        self.at_quarter = nn.Sequential(_block(32, 64, 2), _block(64, 64))
        self.at_eighth = nn.Sequential(
            _block(64, NUM_FEATURES, 2), _block(NUM_FEATURES, NUM_FEATURES)
        )
        self.up_quarter = _block(NUM_FEATURES + 64, 64)
        self.up_half = _block(64 + 32, 48)
        self.pixels = nn.Sequential(
            nn.Conv2d(48, 4 * (NUM_COLOURS + NUM_SHAPES), 1), nn.PixelShuffle(2)
        )
        self.labels = nn.Linear(NUM_FEATURES, NUM_LABELS)

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give logits from images in [0, 1]: colours [N, C, H, W], shapes [N, S, H, W], [N, L]."""
        half = self.at_half(images_N3HW * 2 - 1)
        quarter = self.at_quarter(half)
        eighth = self.at_eighth(quarter)
        up = self.up_quarter(torch.cat([_double(eighth), quarter], 1))
        up = self.up_half(torch.cat([_double(up), half], 1))
        colours, shapes = self.pixels(up).split([NUM_COLOURS, NUM_SHAPES], 1)
        return colours, shapes, self.labels(eighth.mean((2, 3)))

    def describe(self, images_N3HW: Tensor) -> Tensor:
        """Give features [N, D] of images in [0, 1]."""
        eighth: Tensor = self.at_eighth(self.at_quarter(self.at_half(images_N3HW * 2 - 1)))
        return eighth.mean((2, 3))


def _double(maps: Tensor) -> Tensor:
    return functional.interpolate(maps, scale_factor=2.0, mode="nearest")


@cache
def load(device: str = "cpu") -> Reader:
    """Load the reader that lies beside this file, ready to read."""
    reader = Reader()
    reader.load_state_dict(load_file(WEIGHTS))
    return reader.eval().requires_grad_(False).to(device)


def to_floats(images_NHW3: Tensor) -> Tensor:
    """Turn bytes [N, H, W, 3] into images [N, 3, H, W] in [0, 1]."""
    if images_NHW3.dtype != torch.uint8 or images_NHW3.shape[1:] != (SIZE, SIZE, 3):
        got = f"{images_NHW3.dtype} {list(images_NHW3.shape)}"
        raise ValueError(f"pictures must be uint8 [N, {SIZE}, {SIZE}, 3], got {got}")
    return images_NHW3.movedim(-1, 1).float() / 255
