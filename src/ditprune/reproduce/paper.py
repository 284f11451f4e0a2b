"""The paper's own figures, for comparison; of other models, so orders compare and values do not.

Source of all: arXiv 2607.00927v2, the table or figure that the study names. Those that we do not
have are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ditprune.reproduce.studies import PAPER, STUDIES


@dataclass(frozen=True)
class Line:
    """A method's figures, by metric."""

    method: str
    sparsity: float | str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Figures:
    """The figures of one model at one setting."""

    model: str
    setting: str
    lines: tuple[Line, ...]


def _lines(sparsity: float | str, keys: str, **methods: tuple[float, ...]) -> tuple[Line, ...]:
    """Lines of one sparsity; `keys` names the metrics of each tuple, in order."""
    names = {"own": "DiT-Pruning", "wanda": "Wanda", "stw": "STW"}
    return tuple(
        Line(names.get(name, name), sparsity, dict(zip(keys.split(), values, strict=True)))
        for name, values in methods.items()
    )


_ALL_KEYS = "fid inception_score sfid precision ssim"
_DENSE_KEYS = "fid inception_score sfid precision"
_FLUX = "clip_score image_reward fid inception_score"
_EXPONENTS = {"0.5": 41.9, "1": 22.2, "2": 20.3, "3": 22.8}

FIGURES: dict[str, tuple[Figures, ...]] = {
    "main": (
        Figures(
            "DiT-XL/2", "ImageNet 256², DDPM, 250 steps, guidance 1.5, 10,000 images",
            _lines(0.0, _DENSE_KEYS, dense=(5.33, 273.6, 17.84, 0.84))
            + _lines(
                0.4, _ALL_KEYS, magnitude=(9.39, 163, 19.8, 0.70, 0.545),
                wanda=(13.09, 153, 41.7, 0.68, 0.537), own=(6.53, 224, 23.4, 0.79, 0.617),
            )
            + _lines(
                0.5, _ALL_KEYS, magnitude=(42.1, 51, 34.9, 0.41, 0.474),
                wanda=(46.0, 49, 97.2, 0.62, 0.461), own=(13.9, 135, 36.2, 0.66, 0.534),
            ),
        ),
        Figures(
            "PixArt-Σ", "COCO 512², DPM-Solver, 20 steps, guidance 4.5, 1,024 prompts",
            _lines(0.0, _DENSE_KEYS, dense=(62.4, 36.1, 274, 0.59))
            + _lines(
                0.5, "fid inception_score precision ssim", magnitude=(108.9, 19.7, 0.18, 0.261),
                wanda=(94.0, 19.8, 0.29, 0.373), own=(61.8, 33.3, 0.51, 0.439),
            ),
        ),
        Figures(
            "FLUX.1-dev", "MJHQ 512², 50 steps, guidance 3.5, 1,024 prompts",
            _lines(0.0, f"{_FLUX} sfid precision", dense=(0.272, 0.899, 48.6, 29.6, 266, 0.78))
            + _lines(
                0.5, f"{_FLUX} precision ssim",
                magnitude=(0.249, 0.133, 66.0, 19.8, 0.57, 0.493),
                wanda=(0.265, 0.684, 61.4, 18.7, 0.62, 0.504),
                own=(0.271, 0.828, 52.4, 24.1, 0.76, 0.603),
            ),
        ),
    ),
    "ablation": (
        Figures(
            "DiT-XL/2", "ImageNet 256², DDPM, 50 steps, guidance 1.5",
            _lines(0.0, _DENSE_KEYS, dense=(6.68, 236, 21.6, 0.78))
            + _lines(0.5, _ALL_KEYS, wanda=(57.3, 38.8, 101, 0.34, 0.473))
            + tuple(
                Line(name, 0.5, dict(zip(_ALL_KEYS.split(), values, strict=True)))
                for name, values in {
                    "+ STW": (47.1, 47.0, 92.6, 0.39, 0.488),
                    "+ STW + CAG": (20.3, 112, 39.0, 0.60, 0.559),
                }.items()
            ),
        ),
    ),
    "nm": (
        Figures(
            "FLUX.1-dev", "MJHQ 256²",
            _lines("2:4", "fid", wanda=(79.4,), stw=(69.2,))
            + _lines("4:8", "fid", wanda=(71.6,), stw=(64.0,)),
        ),
    ),
    "exponents": (
        Figures(
            "DiT-XL/2", "ImageNet 256², DDPM, 50 steps",
            tuple(Line(f"(m, n) = ({m}, 1)", 0.5, {"fid": v}) for m, v in _EXPONENTS.items()),
        ),
    ),
}  # fmt: skip


def figures_of(study: str) -> dict[str, Any]:
    """The `paper` of results.json: what it says, where, and its figures as far as we have them."""
    own = FIGURES.get(study, ())
    return {
        "source": f"{PAPER}, {STUDIES[study].source}",
        "said": STUDIES[study].said,
        "figures": [asdict(one) for one in own],
        "missing": None if own else "we have the paper's words on this, and not its figures",
    }
