"""`max_error` by way of the public functions and the command line: the share is told, and why."""

from __future__ import annotations

import json
import re

import pytest

import ditprune as package
from ditprune.api import prune_folder
from ditprune.calibration.sample import Sampling
from ditprune.errors import RecipeError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_a_folder_that_is_sampled_by_itself_tells_its_share_and_error(
    ditprune, tiny_pipeline, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(prune_folder, "Sampling", lambda: Sampling(16, batch_size=8))
    command = ["prune", tiny_pipeline, "-o"]
    code, out, err = ditprune(*command, tmp_path / "a", "--max-error", 0.3, "--dry-run")
    assert code == 0, err
    assert "the largest whose expected error stays below 0.3" in out
    assert list(tmp_path.iterdir()) == []
    code, out, err = ditprune(*command, tmp_path / "a", "--max-error", 0.3)
    assert code == 0, err
    share = int(re.search(r"share: (\d+)% of each group", out)[1]) / 100
    assert re.search(r"0\.3 asked, \S+ expected, \S+ measured on \d+ rows", out)
    claims = json.loads((tmp_path / "a" / "transformer" / "ditprune.json").read_text())
    assert claims["recipe"]["sparsity"] == share
    assert claims["max_error"]["expected"] < 0.3
    assert package.verify(tmp_path / "a") == []
    code, _, err = ditprune(*command, tmp_path / "b", "--max-error", 0.3, "--sparsity", 0.5)
    assert code == 2
    assert "--sparsity 0.5 and --max-error 0.3 exclude each other" in err


def test_each_denoiser_of_a_pipeline_gets_the_share_that_its_error_allows(tmp_path) -> None:
    from tiny_pipelines import FACTS, PIPELINES

    name = "WanPipeline, two denoisers"
    pipe, asked = PIPELINES[name](), {"transformer": 0.05, "transformer_2": 0.5}
    calls = package.sample(
        pipe, prompts=["a"], num_samples=16, num_inference_steps=4, batch_size=4,
        **FACTS[name].arguments(4),
    )  # fmt: skip
    stats = package.calibrate(pipe, calls)
    pipe.save_pretrained(tmp_path / "dense")
    out = package.prune(tmp_path / "dense", tmp_path / "out", stats, max_error=asked, batches=calls)
    here = package.prune_(pipe, stats, max_error=asked, batches=calls)
    for component, part in here.denoisers.items():
        assert part.error.asked == asked[component] > part.error.expected
        assert part.recipe == out.denoisers[component].recipe
        assert part.error == out.denoisers[component].error
    shares = [part.recipe.sparsity for part in here.denoisers.values()]
    assert shares[0] < shares[1]
    pipe = PIPELINES[name]()
    with pytest.raises(RecipeError, match="runs the denoiser on calibration calls and none"):
        package.prune_(pipe, stats, max_error=0.1)
