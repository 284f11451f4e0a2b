"""LPIPS by torchmetrics, against its sum over layers; AlexNet's weights are random here.

The real ones are fetched, which no test does. Without torchvision, a network of the same layers
stands in for the one it would have built.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torchmetrics.functional.image.lpips as library
from torch import Tensor, nn

from ditprune.evaluation.metrics.per_image import load_lpips

# What the network under it was trained with, and where its five layers end.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ENDS = (1, 4, 7, 9, 11)


def layers() -> nn.Sequential:
    """Those of AlexNet as far as the distance looks."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


@pytest.fixture(params=["stand-in", "torchvision"])
def network(request, monkeypatch) -> nn.Sequential:
    """Random layers, which `load_lpips` finds in the place of the trained ones."""
    if request.param == "torchvision":
        models = pytest.importorskip("torchvision").models
        torch.manual_seed(0)
        built = models.alexnet(weights=None)
    else:
        models = SimpleNamespace(AlexNet_Weights=SimpleNamespace(DEFAULT=None))
        module = ModuleType("torchvision")
        module.models = models
        monkeypatch.setitem(sys.modules, "torchvision", module)
        monkeypatch.setattr(library, "_TORCHVISION_AVAILABLE", True)
        torch.manual_seed(0)
        built = SimpleNamespace(features=layers())
    monkeypatch.setattr(models, "alexnet", lambda **_: built, raising=False)
    return built.features


def by_hand(network: nn.Sequential, one: Tensor, two: Tensor) -> Tensor:
    """Zhang et al. (2018), Eq. 1, with the weights of each layer's channels as published."""
    file = Path(library.__file__).parent / "lpips_models" / "alex.pth"
    weights = torch.load(file, map_location="cpu")
    maps = [(images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            for images in (one, two)]  # fmt: skip
    total = torch.zeros(len(one))
    with torch.no_grad():
        for number, layer in enumerate(network[: ENDS[-1] + 1]):
            maps = [layer(features) for features in maps]
            if number in ENDS:
                own = weights[f"lin{ENDS.index(number)}.model.1.weight"].view(-1, 1, 1)
                unit = [f / (f.square().sum(1, keepdim=True) + 1e-8).sqrt() for f in maps]
                total += (own * (unit[0] - unit[1]).square()).sum(1).mean((1, 2))
    return total


def test_the_distance_is_the_sum_over_layers(network) -> None:
    distance = load_lpips()
    one, two = torch.rand(2, 3, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    found = distance(one, two)
    assert found.shape == (3,)
    assert (found > 0.01).all()
    torch.testing.assert_close(found, by_hand(network, one, two), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(distance(one[1:], two[1:]), found[1:])
    assert distance(one, one).tolist() == [0.0] * 3


def test_grey_images_are_seen_as_colour(network) -> None:
    one, two = torch.rand(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    as_colour = by_hand(network, one.repeat(1, 3, 1, 1), two.repeat(1, 3, 1, 1))
    torch.testing.assert_close(load_lpips()(one, two), as_colour, rtol=1e-4, atol=1e-6)
