"""LPIPS: by torchmetrics over torchvision's AlexNet, against its sum over layers."""

from __future__ import annotations

import pytest
import torch

from ditprune.metrics import lpips

torchvision = pytest.importorskip("torchvision")


def test_the_distance_is_the_weighted_sum_of_squares(monkeypatch) -> None:
    """With random weights under it: the real ones are fetched, which no test does."""
    plain = torchvision.models.alexnet
    monkeypatch.setattr(torchvision.models, "alexnet", lambda **_: plain(weights=None))
    torch.manual_seed(0)
    distance = lpips.load()
    one, two = torch.rand(2, 2, 3, 64, 64)
    assert distance(one, one).tolist() == [0.0, 0.0]
    found = distance(one, two)
    assert found.shape == (2,)
    torch.testing.assert_close(distance(one[1:], two[1:]), found[1:])
