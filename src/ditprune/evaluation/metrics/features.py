"""What does a network see in images? Its features, and InceptionV3 as the network."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

# torch_fidelity cannot be imported without torchvision.
_PACKAGES = ("torch_fidelity", "torchvision")
_SPATIAL, _NUM_CHANNELS = "Mixed_6d.branch1x1", 7


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


def has_inception() -> bool:
    """Whether the code of InceptionV3 is installed; its weights are another matter."""
    return all(find_spec(name) is not None for name in _PACKAGES)


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
