"""The command that makes a model again: it gives the recipe that the manifest holds."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from ditprune.cli.options import read_recipe
from ditprune.cli.prune import prune
from ditprune.evaluation.commands import prune_command
from ditprune.recipe import build


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"saliency": "magnitude", "granularity": "layer", "sparsity": 0.3},
        {"saliency": "power", "weight_power": 2.0, "activation_power": 0.5},
        {"pattern": "2:4", "saliency": "wanda"},
        {"include": ("*.attn1.*", "*.ff.*"), "exclude": ("*.to_q",), "auxiliary": True},
        {"preset": "best"},
        {"cag_threshold": "auto"},
        {"allocation": "owl"},
    ],
    ids=str,
)
def test_the_command_gives_the_recipe(words: dict[str, Any]) -> None:
    recipe = build(**words).to_json()
    line = shlex.split(prune_command("some model", "out", recipe, needs_statistics=True))
    assert line[:6] == ["ditprune", "prune", "some model", "-o", "out", "--statistics"]
    context = prune.make_context("prune", line[2:])
    fields = {
        name: value for name, value in context.params.items()
        if name not in ("model", "out", "statistics", "set_folder", "device", "dry_run",
                        "overwrite")
    }  # fmt: skip
    assert read_recipe(**fields).to_json() == recipe
    assert (context.params["set_folder"] is not None) == build(**words).needs_calls


def test_what_needs_no_statistics_names_none() -> None:
    recipe = build(saliency="magnitude").to_json()
    assert "--statistics" not in prune_command("m", "o", recipe, needs_statistics=False)
