"""Which of the chosen metrics can be computed here, with which networks, and why not the others?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.checkpoints.copy_folder import stamp_of
from ditprune.denoiser.placement import Placement
from ditprune.errors import reason_of
from ditprune.evaluation.catalogue import CATALOGUE, OF_FEATURES, Metric
from ditprune.evaluation.extractors import (
    CLASSIFIER_UNAVAILABLE,
    Extractor,
    Reference,
    can_classify,
    choose_extractor,
    hub_folder,
    reference_for,
)
from ditprune.evaluation.metrics import per_image
from ditprune.evaluation.protocol import EXTRACTORS, Measures
from ditprune.evaluation.user_judge import UserJudge

LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"
_LPIPS_SMALLEST = 32  # pixels; AlexNet's pooling leaves nothing of smaller images
_REWARD_WEIGHTS = Path("~/.cache/ImageReward/ImageReward.pt")
# The file name that torch-fidelity gives the weights; to ask for it would import the library.
_INCEPTION_WEIGHTS = "weights-inception-*.pth"
_LIBRARIES = ("torchmetrics", "torch-fidelity", "torchvision", "transformers", "image-reward")
_NO_IMAGES = "the pipeline draws neither images nor frames"
_NO_PROMPTS = "the pipeline draws class labels, and this compares images with prompts"


@dataclass(frozen=True)
class Tools:
    """What the chosen metrics need.

    Args:
        chosen: the metrics to show, in order.
        unavailable: for a chosen metric that cannot be computed, the reason.
        clip_model: the model of the CLIP score, if it is computed.
        networks: of `lpips`, `clip_score` and `image_reward`, as loaded by `metrics.per_image`.
        judge: of the user; None without one.
    """

    chosen: tuple[str, ...]
    unavailable: dict[str, str]
    extractor: Extractor | None
    reference: Reference
    networks: Mapping[str, Callable[[Any, Any], Tensor]]
    clip_model: str | None
    judge: UserJudge | None = None

    @property
    def catalogue(self) -> dict[str, Metric]:
        """The metrics of this run in order; those of the judge are there once it has answered."""
        judged = {} if self.judge is None else self.judge.metrics
        return {key: CATALOGUE[key] for key in self.chosen} | judged

    def has(self, name: str) -> bool:
        """Whether a metric is chosen and can be computed."""
        return name in self.chosen and name not in self.unavailable

    def note(self, name: str) -> str | None:
        """What to know of a metric beside its title, for `metrics` of results.json."""
        if self.judge is not None and name in self.judge.metrics:
            return f"by the judge {self.judge.name}"
        if name == "accuracy":
            return "the share of images that the bundled classifier reads as the class asked for"
        if name == "clip_score":
            return "cosine of CLIP's embeddings; others show 100 times it"
        if self.extractor is not None and self.reference.against.get(name) == "dense":
            return "against the dense model's images of the same seeds, no real ones"
        return None

    @property
    def features_text(self) -> str:
        """For `protocol.feature_extractor`."""
        if self.extractor is not None:
            return self.extractor.text
        return f"not available: {self.unavailable.get('fid', 'no metric of features was chosen')}"


def prepare_tools(
    measures: Measures, like: Tensor | None, asked: Sequence[Any], placement: Placement,
    judge: UserJudge | None = None,
) -> Tools:  # fmt: skip
    """Load what the chosen metrics need for images [n, C, H, W] and conditions like these.

    Where there are no images, as for sound, the error of latents alone is available.

    Raises ModelError or RecipeError for files that were given and cannot be used.
    """
    chosen = measures.chosen
    if like is None:
        return Tools(chosen, dict.fromkeys(set(chosen) - {"relative_error"}, _NO_IMAGES), None,
                     Reference(None, {}), {}, None)  # fmt: skip
    unavailable: dict[str, str] = {}
    extractor: Extractor | str | None = None
    if set(OF_FEATURES) & set(chosen):
        extractor = choose_extractor(measures, like, asked, placement)
    if isinstance(extractor, str):
        unavailable |= {name: extractor for name in OF_FEATURES if name in chosen}
        extractor = None
    if "accuracy" in chosen and not can_classify(like, asked):
        unavailable["accuracy"] = CLASSIFIER_UNAVAILABLE
    has_prompts = all(isinstance(condition, str) for condition in asked)
    networks: dict[str, Any] = {}
    for name, load in (("lpips", _lpips), ("clip_score", _clip), ("image_reward", _reward)):
        if name in chosen:
            is_fit = has_prompts or CATALOGUE[name].against != "condition"
            network = load(measures, like, placement.device) if is_fit else _NO_PROMPTS
            (unavailable if isinstance(network, str) else networks)[name] = network
    reference = reference_for(measures.reference, extractor, like)
    clip = Path(measures.clip).resolve().name if Path(measures.clip).is_dir() else measures.clip
    return Tools(
        chosen, unavailable, extractor, reference, networks,
        clip if "clip_score" in networks else None, judge,
    )  # fmt: skip


def _lpips(measures: Measures, like: Tensor, device: str) -> Any:
    if find_spec("torchvision") is None:
        return "LPIPS needs torchvision: pip install 'ditprune[metrics]'"
    if min(like.shape[2:]) < _LPIPS_SMALLEST:
        return "images are smaller than the 32 pixels that its network needs"
    if not (hub_folder() / LPIPS_WEIGHTS).is_file() and not measures.fetches("lpips"):
        return "AlexNet's weights (233 MB) are not here: --metrics lpips,… fetches them"
    return _try(lambda: per_image.load_lpips(device))


def _clip(measures: Measures, _like: Tensor, device: str) -> Any:
    if find_spec("transformers") is None:
        return "CLIP needs transformers: pip install 'ditprune[metrics]'"
    fetch = measures.fetches("clip_score")
    score = _try(lambda: per_image.load_clip(measures.clip, device, fetch))
    if isinstance(score, str) and not fetch:
        return f"{measures.clip} is not here: --metrics clip_score,… fetches it, or pass --clip DIR"
    return score


def _reward(measures: Measures, _like: Tensor, device: str) -> Any:
    if find_spec("ImageReward") is None:
        return "ImageReward is not installed: pip install image-reward"
    if not _REWARD_WEIGHTS.expanduser().is_file() and not measures.fetches("image_reward"):
        return "its weights (1.8 GB) are not here: --metrics image_reward,… fetches them"
    return _try(lambda: per_image.load_image_reward(device))


def _try(load: Callable[[], Any]) -> Any:
    """What was loaded, or the reason why not; these libraries raise dozens of types."""
    try:
        return load()
    except Exception as error:
        return f"could not be loaded ({type(error).__name__}: {reason_of(error)})"


def library_versions() -> dict[str, str]:
    """The versions of the libraries of metrics that are installed."""
    versions = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def tools_stamp(measures: Measures) -> dict[str, Any]:
    """What decides, besides the images, which metrics can be computed and their numbers.

    Given files count by names, sizes and times; weights that libraries download, only by whether
    they are on this machine.
    """
    given = {"reference": measures.reference, "clip": Path(measures.clip)}
    if measures.feature_extractor not in EXTRACTORS:
        given["feature_extractor"] = Path(measures.feature_extractor)
    weights = [*hub_folder().glob(_INCEPTION_WEIGHTS), *hub_folder().glob(LPIPS_WEIGHTS)]
    weights += [_REWARD_WEIGHTS.expanduser()]
    return {
        "versions": library_versions(),
        "files": {name: _stamp(path) for name, path in given.items() if path is not None},
        "weights": sorted(file.name for file in weights if file.is_file()),
        "clip": _has_clip(measures.clip),
    }


def _stamp(path: Path) -> str | None:
    """Of a file, or of all files in a folder; None if there is nothing."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return stamp_of(filter(Path.is_file, files), path) if path.exists() else None


def _has_clip(model: str) -> bool:
    """Whether a model is in the hub's cache; False for a folder."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return False
