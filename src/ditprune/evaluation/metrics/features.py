"""What does a network see in images? Its features, and InceptionV3 as the network."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# torch_fidelity cannot be imported without torchvision.
_PACKAGES = ("torch_fidelity", "torchvision")
_SPATIAL, _NUM_CHANNELS = "Mixed_6d.branch1x1", 7


@dataclass(frozen=True)
class Features:
    """What a network saw in batches of images, [n, …] for each batch.

    Args:
        pooled: features for FID, KID, precision and recall.
        spatial: features before pooling, flattened, for sFID.
        logits: of classes, for the Inception Score.
    """

    pooled: tuple[Tensor, ...] = ()
    spatial: tuple[Tensor, ...] = ()
    logits: tuple[Tensor, ...] = ()

    @property
    def widths(self) -> tuple[int, int]:
        """How many pooled and spatial features an image has; 0 if no network looked."""
        pooled, spatial = (
            batches[0].shape[1] if batches else 0 for batches in (self.pooled, self.spatial)
        )
        return pooled, spatial

    def all_pooled(self) -> Float[Tensor, "n f"]:
        return torch.cat(self.pooled).double()

    def all_spatial(self) -> Float[Tensor, "n s"]:
        return torch.cat(self.spatial).double()

    def all_logits(self) -> Float[Tensor, "n c"]:
        return torch.cat(self.logits).double()

    def __add__(self, more: Features) -> Features:
        """These batches, then those of `more`."""
        return Features(
            self.pooled + more.pooled, self.spatial + more.spatial, self.logits + more.logits
        )


def has_inception() -> bool:
    """Whether the code of InceptionV3 is installed; its weights are another matter."""
    return all(find_spec(name) is not None for name in _PACKAGES)


def inception_address() -> str:
    """Where torch-fidelity has the weights, 91 MB; the name ends with the start of a sha256."""
    return _inception_module().URL_INCEPTION_V3


def load_inception(
    weights: Mapping[str, Tensor], device: str = "cpu"
) -> Callable[[UInt8[Tensor, "n c h w"]], Features]:
    """InceptionV3 as FID means it: torch-fidelity's port of TensorFlow's network of 2015.

    Pooled features are [N, 2048] and logits, without their bias, [N, 1008]. Spatial features are
    those of sFID in guided-diffusion's evaluator: the first 7 channels of the 1×1 branch of the
    seventh mixed block, 17×17, so [N, 2023].

    Raises RuntimeError for weights of another network.
    """
    # The library unpickles whatever file it is given, so it gets weights that were read safely.
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    buffer.seek(0)
    network = _inception_module().FeatureExtractorInceptionV3(
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
        return Features((pooled.cpu(),), (spatial.pop().flatten(1).float().cpu(),), (logits.cpu(),))

    return see


def _inception_module() -> Any:
    from torch_fidelity import feature_extractor_inceptionv3

    return feature_extractor_inceptionv3
