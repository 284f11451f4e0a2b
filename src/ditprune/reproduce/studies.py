"""Which recipes does a study of the paper compare, at which settings, and what came out there?

`studies.json` holds the studies, `paper_figures.json` the paper's figures. They are those of other
models: orders can be compared, values cannot. Figures that we do not have are not here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAPER = "arXiv 2607.00927v2"


@dataclass(frozen=True)
class Method:
    """One line of a table.

    Args:
        name: its name in the table.
        words: the words of its recipe, for `recipe.build`; the sparsity comes from the study.
        sampling: the fields in which its calibration differs from that of the study.
    """

    name: str
    words: Mapping[str, Any]
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What the paper says about two methods at the same setting.

    Args:
        first, second: the first one is better, or both are about the same if `alike`.
    """

    first: str
    second: str
    alike: bool = False


@dataclass(frozen=True)
class Study:
    """One table or figure of the paper.

    Args:
        source: which table or figure.
        said: what the paper finds there, in our words.
        methods: the lines of the table; none if the study draws no images.
        axis: what the figure shows from left to right: `method`, `sparsity` or `guidance_scale`.
        sparsities, steps, guidance_scales: the settings with the bundled model. With another model
            steps and guidance are its pipeline's own, except in the study of guidance.
        takes: the options that it acts on, besides those of sampling. In `studies.json`: besides
            steps and guidance too, and how many images are drawn.
    """

    name: str
    title: str
    source: str
    said: str
    methods: tuple[Method, ...] = ()
    claims: tuple[Claim, ...] = ()
    axis: str = "method"
    sparsities: tuple[float, ...] = (0.5,)
    steps: tuple[int, ...] = (25,)
    guidance_scales: tuple[float, ...] = (1.5,)
    takes: frozenset[str] = frozenset()


def _load(name: str) -> Any:
    return json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _study(name: str, content: Mapping[str, Any]) -> Study:
    methods = tuple(Method(**method) for method in content.get("methods", ()))
    claims = tuple(Claim(**claim) for claim in content.get("claims", ()))
    draws = {"num_images", "num_held_out", "batch_size"} if methods else set()
    takes = frozenset({"steps", "guidance_scales", *content["takes"], *draws})
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return Study(name, **values | {"methods": methods, "claims": claims, "takes": takes})


STUDIES = {name: _study(name, content) for name, content in _load("studies.json").items()}
# By study, in the shape that they have in results.json. Source: the table that the study names.
PAPER_FIGURES: dict[str, list[dict[str, Any]]] = _load("paper_figures.json")


def paper_of(study: str) -> dict[str, Any]:
    """The `paper` of results.json: what the paper says, where, and its figures if we have them."""
    figures = PAPER_FIGURES.get(study, [])
    return {
        "source": f"{PAPER}, {STUDIES[study].source}",
        "said": STUDIES[study].said,
        "figures": figures,
        "missing": None if figures else "we have the paper's words on this, and not its figures",
    }
