"""Whose features are FID and its relatives computed from, and against which images?

Features are the bundled classifier's or InceptionV3's. The reference is a folder of real images,
the moments that come with the classifier, or the dense model's images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ditprune import bundled
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, RecipeError, is_out_of_memory, reason_of
from ditprune.evaluation.catalogue import AGAINST_IMAGES, OF_FEATURES
from ditprune.evaluation.drawing import as_unit
from ditprune.evaluation.metrics.distributions import moments
from ditprune.evaluation.protocol import Measures
from ditprune.writing.tensors_file import load_tensors

CLASSIFIER_TEXT = (
    "the bundled MNIST classifier's 64 features; not InceptionV3's, not comparable with it"
)
CLASSIFIER_UNAVAILABLE = "the bundled classifier reads 32×32 grey digits only"
_INCEPTION_TEXT = "InceptionV3 of torch-fidelity (2,048 features, as in the literature)"
_BUNDLED_REFERENCE = "FID: the 10,000 MNIST test images, by their features' moments"
# The map before pooling and its channels that guided-diffusion's sFID takes of InceptionV3; the
# classifier gives as many channels.
_SPATIAL, _NUM_CHANNELS = "Mixed_6d.branch1x1", 7
_BATCH = 50  # images seen at once
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class Features(NamedTuple):
    """What a network saw in n images.

    Args:
        pooled: features [n, f] for FID, KID, precision and recall.
        spatial: features before pooling, flattened [n, s], for sFID.
        logits: of classes [n, c], for the Inception Score.
    """

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


def joined_features(batches: Iterable[Features]) -> Features:
    """What was seen in all batches, in their order."""
    return Features(*map(torch.cat, zip(*batches, strict=True)))


@dataclass(frozen=True)
class Extractor:
    """A network that sees features in images.

    Args:
        text: whose features they are.
        see: uint8 [n, C, H, W] → their features.
        real: moments of real images' pooled features, if the extractor comes with some.
    """

    text: str
    see: Callable[[Tensor], Features]
    real: Mapping[str, Tensor] | None = None

    def see_all(self, images: Tensor) -> Features:
        """The features of a batch of any size, uint8 [n, C, H, W]."""
        return joined_features(self.see(part) for part in images.split(_BATCH))


def can_classify(images: Tensor, asked: Sequence[Any]) -> bool:
    """Whether the bundled classifier was made for images [N, C, H, W] and conditions like these."""
    return images.shape[1:] == (1, bundled.IMAGE_SIZE, bundled.IMAGE_SIZE) and all(
        isinstance(label, int) and 0 <= label < bundled.NUM_CLASSES for label in asked
    )


def hub_folder() -> Path:
    """Where torch's hub keeps weights that were downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def choose_extractor(
    measures: Measures, images: Tensor, asked: Sequence[Any], placement: Placement
) -> Extractor | str:
    """The extractor for images [n, C, H, W] like these, or why there is none.

    Raises ModelError for a file of weights that cannot be read or belongs to another network.
    """
    given = measures.feature_extractor
    is_readable = can_classify(images, asked)
    if given == "classifier" or (given == "auto" and is_readable):
        return _classifier() if is_readable else CLASSIFIER_UNAVAILABLE
    if not has_inception():
        return "InceptionV3 needs torch-fidelity: pip install 'ditprune[metrics]'"
    if given not in ("auto", "inception"):
        text = f"{_INCEPTION_TEXT}, weights of {Path(given).name}"
        return Extractor(text, _inception(Path(given), placement))
    fetch = given == "inception" or any(measures.fetches(name) for name in OF_FEATURES)
    file = hub_folder() / inception_address().split("/")[-1]
    if not file.is_file() and not fetch:
        return (
            "InceptionV3's weights (91 MB) are not here: --feature-extractor inception fetches "
            "them, or pass a file"
        )
    reason = None if file.is_file() else _fetch(file)
    return reason or Extractor(_INCEPTION_TEXT, _inception(file, placement))


def _classifier() -> Extractor:
    classifier = bundled.load_classifier()
    until_map, pooling = classifier.trunk[:-2], classifier.trunk[-2:]

    def see(images: Tensor) -> Features:
        with torch.inference_mode():
            spatial = until_map(as_unit(images) * 2 - 1)
            pooled = pooling(spatial)
            return Features(pooled, spatial[:, :_NUM_CHANNELS].flatten(1), classifier.head(pooled))

    return Extractor(CLASSIFIER_TEXT, see, bundled.load_reference())


def has_inception() -> bool:
    """Whether the code of InceptionV3 is installed; its weights are another matter."""
    # torch_fidelity cannot be imported without torchvision.
    return all(find_spec(name) is not None for name in ("torch_fidelity", "torchvision"))


def inception_address() -> str:
    """Where torch-fidelity has the weights, 91 MB; the name ends with the start of a sha256."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3


def load_inception(
    weights: Mapping[str, Tensor], device: str = "cpu"
) -> Callable[[UInt8[Tensor, "n c h w"]], Features]:
    """InceptionV3 as FID means it: torch-fidelity's port of TensorFlow's network of 2015.

    Pooled features are [N, 2048] and logits, without their bias, [N, 1008]. Spatial features are
    those of sFID in guided-diffusion's evaluator: the first 7 channels of the 1×1 branch of the
    seventh mixed block, 17×17, so [N, 2023].

    Raises RuntimeError for weights of another network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The library unpickles whatever file it is given, so it gets weights that were read safely.
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    buffer.seek(0)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
    )
    network.to(device)
    spatial: list[Tensor] = []
    branch = network.get_submodule(_SPATIAL)
    branch.register_forward_hook(lambda _m, _i, out: spatial.append(out[:, :_NUM_CHANNELS]))

    def see(images: UInt8[Tensor, "n c h w"]) -> Features:
        spatial.clear()
        with torch.no_grad():
            pooled, logits = network(images.expand(-1, 3, -1, -1).to(device))
        return Features(pooled.cpu(), spatial.pop().flatten(1).float().cpu(), logits.cpu())

    return see


def _fetch(file: Path) -> str | None:
    """Download InceptionV3's weights to where torch's hub keeps them; the reason if that fails."""
    address = inception_address()
    start_of_hash = file.stem.rsplit("-", 1)[-1]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(file), start_of_hash, progress=False)
    except (OSError, RuntimeError) as error:  # no network, another file than named
        return (
            f"InceptionV3's weights could not be fetched ({reason_of(error)}); fetch {address} "
            "elsewhere and pass the file as --feature-extractor"
        )
    return None


def _inception(file: Path, placement: Placement) -> Callable[[Tensor], Features]:
    weights = _read_weights(file)
    try:
        return load_inception(weights, placement.device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{file}: not the weights of torch-fidelity's InceptionV3 ({reason_of(error)})"
        ) from None


def _read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a .pth that holds nothing else; no code is run."""
    if file.suffix == ".safetensors":
        return load_tensors(file)[0]
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ModelError(
            f"{file}: cannot be read as weights alone ({reason_of(error)}); code in files is never "
            "run"
        ) from None
    if not isinstance(weights, dict):
        raise ModelError(f"{file}: holds a {type(weights).__name__}, expected named tensors")
    return weights


@dataclass(frozen=True)
class Reference:
    """The images that FID and its relatives are taken against.

    Args:
        text: for `protocol.reference`; None if there are no real images.
        against: `real` or `dense`, for each metric that is taken against images.
        pooled_moments: of real images, for FID.
        features: of real images.
    """

    text: str | None
    against: Mapping[str, str]
    pooled_moments: Mapping[str, Tensor] | None = None
    features: Features | None = None


def reference_for(folder: Path | None, extractor: Extractor | None, like: Tensor) -> Reference:
    """The best reference there is for images like these [n, C, H, W].

    Raises RecipeError for a folder without images, or with one that cannot be read.
    """
    dense = dict.fromkeys(AGAINST_IMAGES, "dense")
    if extractor is None:
        return Reference(None, dense)
    if folder is not None:
        features = _see_folder(folder, extractor, like)
        source = f"{len(features.pooled):,} images of {folder.resolve().name}"
        real = dict.fromkeys(AGAINST_IMAGES, "real")
        text = f"{source}, cropped and scaled to the samples"
        return Reference(text, real, moments(features.pooled), features)
    if extractor.real is not None:
        text = f"{_BUNDLED_REFERENCE}; sFID, KID, precision and recall: the dense model's images"
        return Reference(text, dense | {"fid": "real"}, extractor.real)
    return Reference(None, dense)


def _see_folder(folder: Path, extractor: Extractor, like: Tensor) -> Features:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    if len(files) < 2:
        raise RecipeError(
            f"--reference {folder}: holds {len(files)} images, expected 2 or more "
            f"({', '.join(sorted(_SUFFIXES))})"
        )
    parts = (files[first : first + _BATCH] for first in range(0, len(files), _BATCH))
    return joined_features(
        extractor.see(torch.stack([read_picture(file, like) for file in part])) for part in parts
    )


def read_picture(file: Path, like: Tensor) -> Tensor:
    """An image file as uint8 [C, H, W], with the colours and the size of the samples [n, C, H, W].

    It is scaled and cropped around its middle. Raises RecipeError.
    """
    num_colours, height, width = like.shape[1:]
    try:
        with Image.open(file) as opened:
            picture = opened.convert("L" if num_colours == 1 else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise RecipeError(f"--reference: {file} cannot be read as an image ({error})") from None
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(fitted))
    return pixels[None] if num_colours == 1 else pixels.permute(2, 0, 1)
