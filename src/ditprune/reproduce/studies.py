"""Which recipes does a study of the paper compare, at which settings, and what came out there?

The paper's figures are those of other models: orders can be compared, values cannot. Figures that
we do not have are not here.
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
        takes: the options that it acts on, besides those of sampling.
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


_DRAWS = frozenset({"num_images", "num_held_out", "batch_size", "steps", "guidance_scales"})
_SHARED = _DRAWS | {"sparsities", "num_samples"}
_LOOKS = frozenset({"steps", "guidance_scales", "num_samples"})

_MAGNITUDE = Method("magnitude", {"saliency": "magnitude", "granularity": "layer"})
_WANDA = Method("Wanda", {"saliency": "wanda", "granularity": "channel"})
_STW = Method("+ STW", {"saliency": "stw", "granularity": "channel"})
_FULL = Method("DiT-Pruning", {"saliency": "stw", "granularity": "cag"})
_BEST = (Claim("DiT-Pruning", "magnitude"), Claim("DiT-Pruning", "Wanda"))
SIZES = (32, 128, 256, 512, 1024)
PARTS = {"early": "early", "middle": "middle", "late": "late", "all": "uniform"}


def _power(m: float, n: float) -> Method:
    words = {"saliency": "power", "weight_power": m, "activation_power": n, "granularity": "cag"}
    return Method(f"(m, n) = ({m:g}, {n:g})", words)


def _pattern(pattern: str) -> tuple[Method, ...]:
    return tuple(
        Method(name, {"saliency": saliency, "pattern": pattern})
        for name, saliency in (("magnitude", "magnitude"), ("Wanda", "wanda"), ("STW", "stw"))
    )


def of_size(num_samples: int) -> Method:
    """DiT-Pruning, calibrated on this number of samples."""
    return Method(f"{num_samples} samples", _FULL.words, {"num_samples": num_samples})


_ALL = (
    Study(
        "main", "Method × sparsity × sampler steps", "Tables 1–4",
        "DiT-Pruning is better than magnitude and than Wanda, the more so at 50 %; magnitude has a "
        "lower FID than Wanda on DiT-XL/2 and a higher one on PixArt-Σ and FLUX.1-dev.",
        (_MAGNITUDE, _WANDA, _FULL), _BEST, "sparsity",
        sparsities=(0.2, 0.4, 0.5, 0.6), steps=(50, 25, 10), takes=_SHARED,
    ),
    Study(
        "ablation", "From Wanda to STW to CAG", "Tables 5 and 11",
        "Each part helps: squaring the weight, then choosing the granularity by layer.",
        (_WANDA, _STW, Method("+ STW + CAG", _FULL.words)),
        (Claim("+ STW", "Wanda"), Claim("+ STW + CAG", "+ STW")), takes=_SHARED,
    ),
    Study(
        "nm", "N:M patterns", "Table 6", "STW is better than Wanda at 2:4 and at 4:8.",
        (*_pattern("2:4"), *_pattern("4:8")), (Claim("STW", "Wanda"),),
        takes=_DRAWS | {"num_samples"},
    ),
    Study(
        "exponents", "Exponents of weight and activation, with CAG", "Table 13",
        "Of these exponents (2, 1), which is STW, is the best.",
        tuple(_power(m, 1) for m in (0.5, 1, 2, 3)),
        tuple(Claim("(m, n) = (2, 1)", f"(m, n) = ({m}, 1)") for m in ("0.5", "1", "3")),
        takes=_SHARED,
    ),
    Study(
        "calibration-size", "How many calibration samples", "Table 10",
        "256 to 1,024 samples change almost nothing against 128.",
        tuple(of_size(size) for size in SIZES),
        tuple(Claim(f"{size} samples", "128 samples", alike=True) for size in SIZES if size > 128),
        takes=_DRAWS | {"sparsities", "sizes"},
    ),
    Study(
        "timesteps", "Which part of the way the calibration sees", "Figure 6",
        "Calibrating on early or on late timesteps alone is clearly worse than on all.",
        tuple(Method(name, _FULL.words, {"timesteps": part}) for name, part in PARTS.items()),
        (Claim("all", "early"), Claim("all", "late")), takes=_SHARED,
    ),
    Study(
        "guidance", "Method × guidance scale", "Table 12",
        "DiT-Pruning is the best of the three (of its Table 12 we have no more than that).",
        (_MAGNITUDE, _WANDA, _FULL), _BEST, "guidance_scale",
        guidance_scales=(1.0, 1.5, 3.0, 5.0), takes=_SHARED,
    ),
    Study(
        "statistics", "Weights and activations by role and depth", "Tables 7 and 8, Figure 1",
        "Weights of diffusion transformers are large: the histogram of |W| has its peak near 1e-1, "
        "that of language models near 1e-2.",
        takes=_LOOKS,
    ),
    Study(
        "importance", "The importance map of a layer", "Figure 2",
        "Output channels of attention and MLP layers are alike; those of adaLN modulation differ, "
        "so G_out is larger there.",
        takes=_LOOKS | {"layers"},
    ),
)  # fmt: skip

STUDIES: dict[str, Study] = {study.name: study for study in _ALL}


# By study, in the shape that they have in results.json. Source: the table that the study names.
PAPER_FIGURES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "paper_figures.json").read_text(encoding="utf-8")
)


def paper_of(study: str) -> dict[str, Any]:
    """The `paper` of results.json: what the paper says, where, and its figures if we have them."""
    figures = PAPER_FIGURES.get(study, [])
    return {
        "source": f"{PAPER}, {STUDIES[study].source}",
        "said": STUDIES[study].said,
        "figures": figures,
        "missing": None if figures else "we have the paper's words on this, and not its figures",
    }
