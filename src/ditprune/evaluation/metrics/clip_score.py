"""How well images show their prompts: the cosine of CLIP's embeddings, by transformers.

Source: Hessel et al., CLIPScore (2021), without its factor; the paper's tables show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

Score = Callable[[Tensor, Sequence[str]], Tensor]

MODEL = "openai/clip-vit-base-patch16"


def load(model: str = MODEL, device: str = "cpu", fetch: bool = False) -> Score:
    """uint8 images [N, C, H, W] and N prompts → the score of each [N], at least 0.

    Args:
        model: a hub id, or a folder with CLIP's weights (safetensors) and its processors.
        fetch: whether a model that is not here may be fetched.

    Raises what transformers raises where it cannot be had.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    here: dict[str, Any] = {"local_files_only": not fetch}
    clip = CLIPModel.from_pretrained(model, use_safetensors=True, **here).eval().to(device)
    tokens = AutoTokenizer.from_pretrained(model, **here)
    pixels = AutoImageProcessor.from_pretrained(model, **here)
    longest = clip.config.text_config.max_position_embeddings

    def score(images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]) -> Tensor:
        colours = list(images.expand(-1, 3, -1, -1).cpu())
        text = tokens(
            list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        seen = pixels(colours, return_tensors="pt")
        with torch.no_grad():
            out = clip(
                input_ids=text["input_ids"].to(device),
                attention_mask=text["attention_mask"].to(device),
                pixel_values=seen["pixel_values"].to(device),
            )
        cosine = torch.cosine_similarity(out.image_embeds, out.text_embeds)
        return cosine.clamp(min=0).float().cpu()

    return score
