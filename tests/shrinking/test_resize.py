"""Layers say their new sizes, and what cannot be is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ditprune.checkpoints.shrunk.resize import resize_
from ditprune.errors import ModelError
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.units import Consumer, Cut, Number, UnitGroup, UnitPart


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Linear(8, 6, bias=False)
        self.register_buffer("table", torch.arange(8.0))
        self.heads, self.split_sizes, self.parts = 4, [8, 6], (8, 2)

    def forward(self, h: Tensor) -> Tensor:
        h = self.norm(self.up(h)) + self.table
        return self.down(self.mix(h[:, :, None, None])[..., 0, 0])


def group() -> UnitGroup:
    """Units of two neighbours in the width of 8."""
    places = torch.arange(8).view(4, 2)
    names = ("up.weight", "up.bias", "norm.weight", "norm.bias", "mix.weight", "mix.bias", "table")
    parts = (
        *(UnitPart(f"a.{name}", 0, places) for name in names),
        UnitPart("a.down.weight", 1, places),
    )
    numbers = (Number("a", "heads", 1), Number("a", "split_sizes.0", 2), Number("a", "parts.0", 2))
    return UnitGroup("a", "heads", "a", 4, (Consumer("a.down", places),), parts, numbers)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_cut_says_its_sizes_and_runs(device: str) -> None:
    layers = Layers().to(device)
    cut_(layers, Cut({"a": group()}, {"a": [0, 3]}), "a")
    assert (layers.up.out_features, layers.down.in_features) == (4, 4)
    assert (layers.mix.groups, layers.mix.in_channels, layers.mix.out_channels) == (4, 4, 4)
    assert layers.norm.normalized_shape == (4,)
    assert (layers.heads, layers.split_sizes, layers.parts) == (2, [4, 6], (4, 2))
    assert layers(torch.ones(3, 6, device=device)).shape == (3, 6)
    if device == "cpu":
        assert layers.table.tolist() == [0, 1, 6, 7]


def test_one_block_is_cut_without_the_others() -> None:
    blocks = nn.ModuleDict({"a": Layers(), "ab": Layers()})
    cut_(blocks["ab"], Cut({"a": group()}, {"a": [0]}), "ab")
    assert (blocks["ab"].up.out_features, blocks["ab"].heads) == (8, 4)


@pytest.mark.parametrize(
    ("tensors", "numbers", "said"),
    [
        ({"gone.weight": torch.ones(2, 2)}, {}, "has no module 'gone'"),
        ({"up.scale": torch.ones(2)}, {}, "has no tensor 'up.scale'"),
        ({"up.weight": torch.ones(9, 6)}, {}, r"\[9, 6\]; expected at most \[8, 6\]"),
        ({"up.bias": torch.ones(4, 1)}, {}, "expected at most"),
        ({}, {"": {"training": 1}}, "has no number 'training'"),
        ({}, {"": {"forward": 1}}, "has no number 'forward'"),
        ({}, {"": {"split_sizes.9": 1}}, "has no number"),
        ({}, {"": {"heads": 5}}, "1 to 4"),
        ({}, {"": {"heads": True}}, "1 to 4"),
        ({}, {"": {"heads": 0}}, "1 to 4"),
    ],
)
def test_what_is_not_there_or_grows_is_refused(
    tensors: dict[str, Tensor], numbers: dict[str, dict[str, int]], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        resize_(Layers(), tensors, numbers)
