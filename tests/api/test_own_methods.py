"""A saliency and a reconstruction with a constant of their own are a class and a line each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import ditprune
from ditprune.errors import RecipeError
from ditprune.method.reconstruction import RECONSTRUCTIONS
from ditprune.method.reconstruction.layer import LayerResult
from ditprune.method.saliency import SALIENCIES
from ditprune.method.statistics.column_norm import ColumnNorm
from ditprune.method.statistics.gram import Gram
from ditprune.method.words import build
from folders import files_of

SEEN: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Sharp:
    """|W|^sharpness: it asks for no statistics, and is called without any."""

    sharpness: float = 3.0
    name: ClassVar[str] = "sharp"
    needs: ClassVar[frozenset[type]] = frozenset()

    def __call__(self, weight: Tensor) -> Tensor:
        return weight.float().abs() ** self.sharpness


@dataclass(frozen=True)
class Scaled:
    """Kept weights times `factor`: it asks for both statistics, and is called with both."""

    factor: float = 0.5
    name: ClassVar[str] = "scaled"
    needs: ClassVar[frozenset[type]] = frozenset({ColumnNorm, Gram})

    def __call__(self, weight: Tensor, mask: Tensor, gram: Tensor, norm: Tensor) -> LayerResult:
        SEEN.append({"gram": tuple(gram.shape), "norm": tuple(norm.shape)})
        assert torch.allclose(gram.diagonal().sqrt(), norm, rtol=1e-3, atol=1e-3)
        return LayerResult(weight.float() * mask * self.factor, mask, 0.0, 0.0)


@pytest.fixture
def registered(monkeypatch) -> None:
    monkeypatch.setitem(SALIENCIES, "sharp", Sharp)
    monkeypatch.setitem(RECONSTRUCTIONS, "scaled", Scaled)
    SEEN.clear()


def test_they_go_through_recipe_command_line_manifest_and_verify(
    registered, ditprune, tiny_pipeline, tmp_path
) -> None:
    command = ["prune", tiny_pipeline, "-o"]
    code, _, err = ditprune(*command, tmp_path / "a", "--saliency", "sharp,sharpness=2.5")
    assert code == 0, err
    recipe = json.loads((tmp_path / "a" / "transformer" / "ditprune.json").read_text())["recipe"]
    assert recipe["saliency"] == {"name": "sharp", "sharpness": 2.5}
    assert build(saliency="sharp", sharpness=2.5).saliency == Sharp(2.5)
    assert ditprune("verify", tmp_path / "a")[0] == 0
    manifest = tmp_path / "a" / "transformer" / "ditprune.json"
    assert ditprune(*command, tmp_path / "b", "--recipe", manifest)[0] == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    code, _, err = ditprune(*command, tmp_path / "c", "--saliency", "sharp,sharpnes=2")
    assert code == 2
    assert "--sharpnes does not apply to --saliency sharp" in err


def test_a_reconstruction_gets_the_statistics_that_it_needs(
    registered, tiny_dit, tiny_stats, batches, tmp_path
) -> None:
    denoiser, dense = tiny_dit(), tiny_dit()
    calls = batches(denoiser)
    stats = ditprune.calibrate(denoiser, calls)
    outcome = ditprune.prune_(
        denoiser, stats, batches=calls, reconstruction={"name": "scaled", "factor": 0.25}
    )
    assert outcome.recipe.reconstruction == Scaled(0.25)
    assert len(SEEN) == len(outcome.targets)
    for (name, target), seen in zip(outcome.targets.items(), SEEN, strict=True):
        assert seen == {"gram": (target.shape[1],) * 2, "norm": (target.shape[1],)}
        weight = denoiser.get_parameter(f"{name}.weight").detach()
        kept = weight != 0
        expected = dense.get_parameter(f"{name}.weight").detach() * 0.25
        assert torch.allclose(weight[kept], expected[kept])
    denoiser.save_pretrained(tmp_path / "out")
    outcome.save(tmp_path / "out")
    assert ditprune.verify(tmp_path / "out") == []


def test_a_statistic_that_an_axis_does_not_have_is_refused() -> None:
    class Greedy(Sharp):
        needs = frozenset({Gram})

    with pytest.raises(RecipeError, match="needs 'Gram'; the statistics that it can need are Colu"):
        build(saliency=Greedy())
