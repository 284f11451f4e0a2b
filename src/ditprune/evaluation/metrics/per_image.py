"""How good is a single image: like the dense model's image of its seed, and true to its prompt?

* SSIM, PSNR and LPIPS compare it with the dense image, by torchmetrics.
* The CLIP score is the cosine of CLIP's embeddings of the image and its prompt, by transformers.
  Source: Hessel et al., CLIPScore (2021), without its factor, as in the paper's tables.
* ImageReward predicts how much people like an image for its prompt. Source: Xu et al.,
  ImageReward (2023). Its package pins old versions of others, so it is no extra of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# Identical images have no noise to measure; they count as this many decibels.
PSNR_OF_IDENTICAL = 100.0


def ssim(pruned: Float[Tensor, "n c h w"], dense: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each pair of images in [0, 1]; 1 is identical."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(pruned, dense, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(len(pruned))


def psnr(pruned: Float[Tensor, "n c h w"], dense: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each pair of images in [0, 1], in dB, at most 100."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    values = peak_signal_noise_ratio(pruned, dense, data_range=1.0, dim=(1, 2, 3), reduction="none")
    return values.clamp(max=PSNR_OF_IDENTICAL)


def load_lpips(device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS over AlexNet: [N, C, H, W] in [0, 1] twice → the distance of each pair [N].

    A distance of 0 is identical. Raises what torchvision raises if it, or the weights, are missing.
    """
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(net="alex").eval().to(device)

    def distance(
        pruned: Float[Tensor, "n c h w"], dense: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, " n"]:
        colours = (images.expand(-1, 3, -1, -1).to(device) for images in (pruned, dense))
        return network(*colours, normalize=True).reshape(len(pruned)).cpu()

    return distance


def load_clip(
    model: str, device: str = "cpu", fetch: bool = False
) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """CLIP score: uint8 images [N, C, H, W] and N prompts → the score of each [N], at least 0.

    Args:
        model: a hub id, or a folder with CLIP's weights (safetensors) and its processors.
        fetch: whether a model that is not on this machine may be downloaded.

    Raises what transformers raises if the model cannot be loaded.
    """
    from transformers import CLIPModel, CLIPProcessor

    local: dict[str, Any] = {"local_files_only": not fetch}
    clip = CLIPModel.from_pretrained(model, use_safetensors=True, **local).eval().to(device)
    processor = CLIPProcessor.from_pretrained(model, **local)
    longest = clip.config.text_config.max_position_embeddings
    words: dict[str, Any] = {"padding": True, "truncation": True, "max_length": longest}

    def score(images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        colours = list(images.expand(-1, 3, -1, -1).cpu())
        inputs = processor(text=list(prompts), images=colours, return_tensors="pt", **words)
        with torch.no_grad():
            out = clip(**inputs.to(device))
        cosine = torch.cosine_similarity(out.image_embeds, out.text_embeds)
        return cosine.clamp(min=0).float().cpu()

    return score


def load_image_reward(device: str = "cpu") -> Callable[[Sequence[Any], Sequence[str]], Tensor]:
    """ImageReward: N PIL images and N prompts → the reward of each [N].

    Raises what its package raises if it, or the weights, are missing.
    """
    import ImageReward

    model = ImageReward.load("ImageReward-v1.0", device=device)

    def score(pictures: Sequence[Any], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        with torch.no_grad():
            return torch.tensor([model.score(p, i) for i, p in zip(pictures, prompts, strict=True)])

    return score
