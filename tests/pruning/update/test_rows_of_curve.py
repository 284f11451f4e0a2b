"""What a share of a large layer costs is read off some of its rows."""

from __future__ import annotations

import pytest
import torch

from ditprune.method.words import build
from ditprune.pruning.update import layers
from ditprune.pruning.update.grams import LayerGram
from ditprune.pruning.update.layers import errors_of, prepare
from ditprune.targets.discover import Target

LEVELS = (0.3, 0.6, 0.9)


def test_some_rows_tell_the_error_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 24, generator=draw) * torch.rand(96, 1, generator=draw)
    inputs = torch.randn(400, 24, generator=draw) @ torch.randn(24, 24, generator=draw)
    gram = LayerGram(inputs.T @ inputs, 0.5 + torch.rand(96, generator=draw))
    recipe = build(preset="fast", saliency="magnitude")
    layer = prepare(Target("a", (96, 24), "mlp", "b", 0), lambda: weight, None, recipe)
    whole = errors_of(layer, gram, recipe, LEVELS)
    monkeypatch.setattr(layers, "ROWS_OF_CURVE", 32)
    some = errors_of(layer, gram, recipe, LEVELS)
    assert some != whole
    assert some == pytest.approx(whole, rel=0.4)
