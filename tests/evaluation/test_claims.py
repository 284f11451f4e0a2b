"""What a pruned pipeline says of itself, of which only one denoiser may have been pruned."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import check_denoiser
from ditprune.evaluation.claims import claims_of
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from folders import add_denoiser, save_pipeline

NAMES = ("transformer", "transformer_2")


@pytest.fixture
def pruned(tiny_dit, tmp_path) -> Path:
    model = save_pipeline(tiny_dit(), tmp_path / "model")
    add_denoiser(model, tiny_dit(1))
    recipe = build(saliency="magnitude", sparsity=0.6)
    prune_checkpoint(locate(str(model)), tmp_path / "out", None, recipe)
    return tmp_path / "out"


@pytest.mark.parametrize("dense", [None, *NAMES])
def test_the_recipe_is_of_the_first_denoiser_that_has_one(pruned, dense) -> None:
    """As after `mask apply` onto a pipeline of which one denoiser has no mask."""
    if dense is not None:
        (pruned / dense / "ditprune.json").unlink()
    claims = claims_of(locate(str(pruned)), {name: check_denoiser(pruned / name) for name in NAMES})
    assert claims.asked == 0.6
    assert claims.recipe == build(saliency="magnitude", sparsity=0.6).to_json()
    assert claims.statistics is None
    assert list(claims.targets) == list(NAMES)
