"""What the chosen metrics need, loaded where it can be had, and the reason where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.denoiser.placement import Placement
from ditprune.errors import reason_of
from ditprune.evaluation import judge
from ditprune.evaluation.catalogue import OF_FEATURES
from ditprune.evaluation.extractors import Extractor, choose
from ditprune.evaluation.libraries import hub_folder
from ditprune.evaluation.metrics import clip_score, image_reward, lpips
from ditprune.evaluation.protocol import Measures
from ditprune.evaluation.references import Reference, reference_for

_NO_PROMPTS = "the pipeline draws class labels, and this compares images with prompts"


@dataclass(frozen=True)
class Tools:
    """Args:
    chosen: the metrics to show, in order.
    unavailable: why a chosen one cannot be had.
    clip_model: whose CLIP score it is, where it is measured.
    """

    chosen: tuple[str, ...]
    unavailable: dict[str, str]
    extractor: Extractor | None
    reference: Reference
    lpips: lpips.Distance | None = None
    clip: clip_score.Score | None = None
    clip_model: str | None = None
    reward: image_reward.Score | None = None

    def has(self, name: str) -> bool:
        """Whether a metric is asked for and can be had."""
        return name in self.chosen and name not in self.unavailable

    def note(self, name: str) -> str | None:
        """What to know of a metric beside its title, for `metrics` of results.json."""
        if name == "accuracy":
            return "the share of images that the bundled classifier reads as the class asked for"
        if name == "clip_score":
            return "cosine of CLIP's embeddings; others show 100 times it"
        if self.extractor is not None and self.reference.against.get(name) == "dense":
            return "against the dense model's images of the same seeds, no real ones"
        return None

    @property
    def features(self) -> str:
        """For `protocol.feature_extractor`."""
        if self.extractor is not None:
            return self.extractor.text
        return f"not available: {self.unavailable.get('fid', 'no metric of features was chosen')}"


def prepare(measures: Measures, like: Tensor, asked: Sequence[Any], place: Placement) -> Tools:
    """Load what the chosen metrics need for images like these [n, C, H, W] and conditions.

    Raises ModelError or RecipeError for files that were given and cannot be used.
    """
    chosen = measures.chosen
    unavailable: dict[str, str] = {}
    extractor: Extractor | None = None
    if set(OF_FEATURES) & set(chosen):
        found = choose(measures, like, asked, place)
        if isinstance(found, str):
            unavailable |= {name: found for name in OF_FEATURES if name in chosen}
        else:
            extractor = found
    if "accuracy" in chosen and not judge.can_read(like, asked):
        unavailable["accuracy"] = judge.UNAVAILABLE
    loaded: dict[str, Any] = {}
    for name, load in (("lpips", _lpips), ("clip_score", _clip), ("image_reward", _reward)):
        if name in chosen:
            tool = load(measures, like, asked, place)
            if isinstance(tool, str):
                unavailable[name] = tool
            else:
                loaded[name] = tool
    return Tools(
        chosen, unavailable, extractor, reference_for(measures.reference, extractor, like),
        loaded.get("lpips"), loaded.get("clip_score"),
        _clip_name(measures.clip) if "clip_score" in loaded else None, loaded.get("image_reward"),
    )  # fmt: skip


def _lpips(measures: Measures, like: Tensor, _asked: Sequence[Any], place: Placement) -> Any:
    if not lpips.is_installed():
        return "LPIPS needs torchvision: pip install 'ditprune[metrics]'"
    if not lpips.fits(*like.shape[2:]):
        return "images are smaller than the 32 pixels that its network needs"
    if not (hub_folder() / lpips.WEIGHTS).is_file() and not measures.fetches("lpips"):
        return "AlexNet's weights (233 MB) are not here: --metrics lpips,… fetches them"
    return _try(lambda: lpips.load(place.device))


def _clip(measures: Measures, _like: Tensor, asked: Sequence[Any], place: Placement) -> Any:
    if not all(isinstance(one, str) for one in asked):
        return _NO_PROMPTS
    if find_spec("transformers") is None:
        return "CLIP needs transformers: pip install 'ditprune[metrics]'"
    fetch = measures.fetches("clip_score")
    found = _try(lambda: clip_score.load(measures.clip, place.device, fetch))
    if isinstance(found, str) and not fetch:
        return f"{measures.clip} is not here: --metrics clip_score,… fetches it, or pass --clip DIR"
    return found


def _clip_name(model: str) -> str:
    """A hub id, or a folder's name."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _reward(measures: Measures, _like: Tensor, asked: Sequence[Any], place: Placement) -> Any:
    if not all(isinstance(one, str) for one in asked):
        return _NO_PROMPTS
    if not image_reward.is_installed():
        return "ImageReward is not installed: pip install image-reward"
    if not image_reward.WEIGHTS.expanduser().is_file() and not measures.fetches("image_reward"):
        return "its weights (1.8 GB) are not here: --metrics image_reward,… fetches them"
    return _try(lambda: image_reward.load(place.device))


def _try(load: Callable[[], Any]) -> Any:
    """What was loaded, or the reason why not: these libraries raise dozens of types."""
    try:
        return load()
    except Exception as error:
        return f"could not be loaded ({type(error).__name__}: {reason_of(error)})"
