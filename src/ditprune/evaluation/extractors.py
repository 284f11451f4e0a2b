"""Whose features FID and its like are of: the bundled classifier's, or InceptionV3's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ditprune import bundled
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, is_out_of_memory, reason_of
from ditprune.evaluation import judge
from ditprune.evaluation.catalogue import OF_FEATURES
from ditprune.evaluation.drawing import as_unit
from ditprune.evaluation.libraries import hub_folder
from ditprune.evaluation.metrics import features, inception
from ditprune.evaluation.metrics.features import Seen
from ditprune.evaluation.protocol import Measures
from ditprune.writing import tensors_file

INCEPTION = "InceptionV3 of torch-fidelity (2,048 features, as in the literature)"
_NUM_CHANNELS = 7  # of the map before pooling, as guided-diffusion's sFID takes of InceptionV3's
_BATCH = 50  # images seen at once


@dataclass(frozen=True)
class Extractor:
    """Args:
    text: whose features.
    see: uint8 [n, C, H, W] → what is seen in them.
    real: moments of real images' pooled features, where some come with it.
    """

    text: str
    see: Callable[[Tensor], Seen]
    real: Mapping[str, Tensor] | None = None

    def see_all(self, images: Tensor, seen: Seen) -> Seen:
        """Add what is seen in a batch of any size."""
        for some in images.split(_BATCH):
            seen = features.update(seen, self.see(some))
        return seen


def choose(
    measures: Measures, images: Tensor, asked: Sequence[Any], place: Placement
) -> Extractor | str:
    """The extractor for images like these, or why there is none.

    Raises ModelError for a file of weights that cannot be read or is of another network.
    """
    given = measures.feature_extractor
    readable = judge.can_read(images, asked)
    if given == "classifier" or (given == "auto" and readable):
        return _classifier() if readable else judge.UNAVAILABLE
    if not inception.is_installed():
        return "InceptionV3 needs torch-fidelity: pip install 'ditprune[metrics]'"
    if given not in ("auto", "inception"):
        return Extractor(f"{INCEPTION}, weights of {Path(given).name}",
                         _inception(Path(given), place))  # fmt: skip
    fetch = given == "inception" or any(measures.fetches(name) for name in OF_FEATURES)
    file = hub_folder() / inception.weights_address().split("/")[-1]
    if not file.is_file() and not fetch:
        return (
            "InceptionV3's weights (91 MB) are not here: --feature-extractor inception fetches "
            "them, or pass a file"
        )
    if not file.is_file():
        reason = _fetch(file)
        if reason:
            return reason
    return Extractor(INCEPTION, _inception(file, place))


def _classifier() -> Extractor:
    classifier = bundled.load_classifier()
    until_map, pooling = classifier.trunk[:-2], classifier.trunk[-2:]

    def see(images: Tensor) -> Seen:
        with torch.inference_mode():
            spatial = until_map(as_unit(images) * 2 - 1)
            pooled = pooling(spatial)
            return Seen(
                (pooled,), (spatial[:, :_NUM_CHANNELS].flatten(1),), (classifier.head(pooled),)
            )

    return Extractor(judge.FEATURES, see, bundled.load_reference())


def _fetch(file: Path) -> str | None:
    """Bring the weights to where torch's hub keeps them; the reason where that fails."""
    address = inception.weights_address()
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


def _inception(file: Path, place: Placement) -> Callable[[Tensor], Seen]:
    weights = _read_weights(file)
    try:
        return inception.load(weights, place.device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{file}: not the weights of torch-fidelity's InceptionV3 ({reason_of(error)})"
        ) from None


def _read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a .pth that holds nothing else: no code is run."""
    if file.suffix == ".safetensors":
        return tensors_file.load(file)[0]
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ModelError(
            f"{file}: cannot be read as weights alone ({reason_of(error)}); code in files is never "
            "run"
        ) from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: holds a {type(found).__name__}, expected named tensors")
    return found
