"""The drawn scenes with their tokenised captions, made once and kept in files."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from testbeds import scenes

from .settings import PARAPHRASES, TEXT_LENGTH, Settings
from .text import WordTable, new_clip_tokenizer, new_t5_tokenizer

LOOKED_AT = 100_000  # scenes searched for objects inside others
CHUNK = 512  # scenes that a worker draws at a time
RENDERED = 64  # scenes rendered together: what they need fits a core's cache


@dataclass(frozen=True)
class Data:
    """Images [N, 3, 64, 64] in bytes and tokens [N, paraphrases, 32], as files mapped."""

    images: np.ndarray
    t5: np.ndarray
    clip: np.ndarray


def load(settings: Settings) -> Data:
    """The training scenes, drawn now unless they lie in the folder of runs."""
    folder = settings.runs / "data"
    done = folder / "done.json"
    if not done.exists() or json.loads(done.read_text())["scenes"] != settings.num_scenes:
        done.unlink(missing_ok=True)
        _make(folder, settings)
        done.write_text(json.dumps({"scenes": settings.num_scenes}))
    return Data(*(np.load(folder / f"{name}.npy", "r") for name in ("images", "t5", "clip")))


def _make(folder: Path, settings: Settings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start, number = time.monotonic(), settings.num_scenes
    for name, dtype, shape in (
        ("images", np.uint8, (number, 3, scenes.SIZE, scenes.SIZE)),
        ("t5", np.int16, (number, PARAPHRASES, TEXT_LENGTH)),
        ("clip", np.int16, (number, PARAPHRASES, TEXT_LENGTH)),
    ):
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
    parts = [(folder, first, min(first + CHUNK, number)) for first in range(0, number, CHUNK)]
    if settings.workers > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        _tables()
        # Forked before the first tensor is made, so that no thread is lost in the children.
        with multiprocessing.get_context("fork").Pool(settings.workers, _one_thread) as pool:
            for _ in pool.imap_unordered(_fill, parts):
                pass
    else:
        for part in parts:
            _fill(part)
    print(f"data: {number} scenes in {time.monotonic() - start:.1f} s", flush=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _fill(part: tuple[Path, int, int]) -> None:
    """Draw the scenes [first, last) into the files."""
    folder, first, last = part
    drawn = [scenes.scene(index, "train") for index in range(first, last)]
    files = {n: np.load(folder / f"{n}.npy", "r+") for n in ("images", "t5", "clip")}
    for start in range(0, last - first, RENDERED):
        some = drawn[start : start + RENDERED]
        seeds = range(first + start, first + start + len(some))
        images = scenes.render(some, list(seeds))
        files["images"][seeds.start : seeds.stop] = images.numpy()
    texts = [caption for index, one in enumerate(drawn, first) for caption in _texts(one, index)]
    for name, table in _tables().items():
        ids = table.ids(texts)
        files[name][first:last] = ids.view(last - first, PARAPHRASES, TEXT_LENGTH).numpy()


@cache
def _tables() -> dict[str, WordTable]:
    words = scenes.VOCABULARY
    makers = {"t5": new_t5_tokenizer, "clip": new_clip_tokenizer}
    return {name: WordTable(new(words), words) for name, new in makers.items()}


def _texts(one: scenes.Scene, index: int) -> list[str]:
    """As many captions of a scene as are kept, all different where it has enough."""
    every = scenes.captions(one)
    random.Random(index).shuffle(every)
    return [every[i % len(every)] for i in range(PARAPHRASES)]


def pixels(images: Tensor) -> Tensor:
    """Bytes to the autoencoder's range, -1 to 1."""
    return images.float() / 127.5 - 1


def pick(ids: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """The number of a paraphrase [B], drawn for every scene of a batch."""
    return torch.randint(ids.shape[1], index.shape, generator=generator, device=index.device)


def scene_drawer(
    settings: Settings, number: int, nested_share: float
) -> Callable[[torch.Generator], Tensor]:
    """Give a function that draws the indices [B] of a batch.

    Args:
        nested_share: of scenes with an object inside another, above the 16 % that there are; 0
            draws all scenes alike.
    """
    device, size = settings.device, settings.batch_size
    num_nested = round(nested_share * size)
    looked_at = range(min(number, LOOKED_AT) if num_nested else 0)
    nested = [i for i in looked_at if scenes.scene(i, "train").relation == "inside"]
    nested = torch.tensor(nested or [*range(number)], device=device)

    def draw(generator: torch.Generator) -> Tensor:
        def any_of(end: int, count: int) -> Tensor:
            return torch.randint(end, (count,), generator=generator, device=device)

        return torch.cat(
            [nested[any_of(len(nested), num_nested)], any_of(number, size - num_nested)]
        )

    return draw
