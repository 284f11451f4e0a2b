"""A pipeline of images with two denoisers: one for the first half of the steps, one for others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiTPipeline
from torch import nn

from folders import add_denoiser, edit_json, save_pipeline


class TwoDenoisersPipeline(DiTPipeline):
    """It calls its denoisers as DiTPipeline does."""

    def __init__(self, transformer: Any, transformer_2: Any, vae: Any, scheduler: Any,
                 id2label: Any = None) -> None:  # fmt: skip
        super().__init__(transformer, vae, scheduler, id2label)
        self.register_modules(transformer_2=transformer_2)

    def __call__(
        self, class_labels: list[int], guidance_scale: float = 4.0, generator: Any = None,
        num_inference_steps: int = 50, output_type: str = "pil",
    ) -> Any:  # fmt: skip
        first = self.transformer
        try:
            return super().__call__(
                class_labels, guidance_scale, generator, num_inference_steps, output_type
            )
        finally:
            self.__dict__["transformer"] = first

    def progress_bar(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """Before the second half of the steps, the second denoiser takes the first one's place."""
        steps = list(iterable)
        for number, step in enumerate(steps):
            if 2 * number >= len(steps):
                self.__dict__["transformer"] = self.transformer_2
            yield step


def two_denoisers(
    first: nn.Module, second: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of such a pipeline, whose class is in diffusers until the test ends."""
    import diffusers

    monkeypatch.setattr(diffusers, "TwoDenoisersPipeline", TwoDenoisersPipeline, raising=False)
    save_pipeline(first, folder)
    add_denoiser(folder, second)
    edit_json(
        folder / "model_index.json",
        lambda index: index.update(_class_name="TwoDenoisersPipeline"),
    )
    return folder
