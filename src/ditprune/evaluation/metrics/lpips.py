"""Learned perceptual distance of same-seed images (LPIPS), by torchmetrics over AlexNet."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from jaxtyping import Float
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]

NEEDS = "torchvision"  # which has the network under the distance, and fetches its weights
WEIGHTS = "alexnet-owt-7be5be79.pth"
_SMALLEST = 32  # pixels; AlexNet's pooling leaves nothing of less


def is_installed() -> bool:
    """Whether the network can be had at all."""
    return find_spec(NEEDS) is not None


def fits(height: int, width: int) -> bool:
    """Whether images are large enough for the network."""
    return min(height, width) >= _SMALLEST


def load(device: str = "cpu") -> Distance:
    """[N, C, H, W] in [0, 1] twice → the distance of each pair [N]; 0 is identical.

    Raises what torchvision raises where it cannot be imported or its weights not be had.
    """
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(net="alex").eval().to(device)

    def distance(
        pruned: Float[Tensor, "n c h w"], dense: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, " n"]:
        one, two = (images.expand(-1, 3, -1, -1).to(device) for images in (pruned, dense))
        return network(one, two, normalize=True).reshape(len(one)).cpu()

    return distance
