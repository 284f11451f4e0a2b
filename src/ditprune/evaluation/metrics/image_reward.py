"""How much people would like an image for its prompt (ImageReward), by its own package.

Source: Xu et al., ImageReward (2023). The package pins old versions of others, so it is no
extra of ours: install it beside, and this finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Pictures and their prompts → the reward of each [N].
Score = Callable[[Sequence[Any], Sequence[str]], Tensor]

PACKAGE = "ImageReward"
WEIGHTS = Path("~/.cache/ImageReward/ImageReward.pt")


def is_installed() -> bool:
    """Whether the package is here."""
    return find_spec(PACKAGE) is not None


def load(device: str = "cpu") -> Score:
    """Raises what the package raises where it cannot be imported or its weights not be had."""
    import ImageReward

    model = ImageReward.load("ImageReward-v1.0", device=device)

    def score(pictures: Sequence[Any], prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            rewards = [model.score(p, one) for one, p in zip(pictures, prompts, strict=True)]
        return torch.tensor(rewards)

    return score
