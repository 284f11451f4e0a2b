"""InceptionV3 as FID means it: torch-fidelity's network, a port of TensorFlow's of 2015.

Pooled features [N, 2048]; spatial ones as in guided-diffusion's evaluator, whose sFID they are:
the first 7 channels of the seventh mixed block's 1×1 branch, 17×17, [N, 2023]; logits without
their bias, [N, 1008].
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ditprune.evaluation.metrics.features import Seen

PACKAGES = ("torch_fidelity", "torchvision")  # the first cannot be imported without the second
_SPATIAL, _NUM_CHANNELS = "Mixed_6d.branch1x1", 7


def is_installed() -> bool:
    """Whether the network's code is here; its weights are another matter."""
    return all(find_spec(name) is not None for name in PACKAGES)


def weights_address() -> str:
    """Where torch-fidelity has the weights, 91 MB; the name ends with the start of a sha256."""
    return _network_module().URL_INCEPTION_V3


def load(
    weights: Mapping[str, Tensor], device: str = "cpu"
) -> Callable[[UInt8[Tensor, "n c h w"]], Seen]:
    """The extractor with these weights. Raises RuntimeError where they are of another network."""
    # The library unpickles whatever file it is given, so it gets what was read safely before.
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    buffer.seek(0)
    network = _network_module().FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
    )
    network.to(device)
    spatial: list[Tensor] = []
    branch = network.get_submodule(_SPATIAL)
    branch.register_forward_hook(lambda _m, _i, out: spatial.append(out[:, :_NUM_CHANNELS]))

    def see(images: UInt8[Tensor, "n c h w"]) -> Seen:
        spatial.clear()
        with torch.no_grad():
            pooled, logits = network(images.expand(-1, 3, -1, -1).to(device))
        return Seen((pooled.cpu(),), (spatial.pop().flatten(1).float().cpu(),), (logits.cpu(),))

    return see


def _network_module() -> Any:
    from torch_fidelity import feature_extractor_inceptionv3

    return feature_extractor_inceptionv3
