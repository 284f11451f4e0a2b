"""Where does a denoiser run, in which dtype, and in how much memory?"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ditprune.errors import RecipeError, did_you_mean

DEVICES = ("cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Placement:
    """Where a denoiser runs.

    Args:
        device: `cpu`, `cuda` (or `cuda:1`), `mps`.
        dtype: of the weights and of the arithmetic.
        max_memory: bytes that the process (on a GPU: the device) may take; a larger denoiser is
            offloaded: each call reads it from its files, layer by layer.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    max_memory: int | None = None

    @classmethod
    def of(
        cls, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
        max_memory: str | int | None = None,
    ) -> Placement:  # fmt: skip
        """From words that are checked; by default the CPU, float32 and no limit.

        Raises RecipeError for unknown words and for a device that this machine does not have.
        """
        chosen = str(device or "cpu")
        kind = chosen.split(":")[0]
        if kind not in DEVICES or not re.fullmatch(r"cpu|mps|cuda(:\d+)?", chosen):
            raise RecipeError(f"--device '{chosen}': {did_you_mean(chosen, DEVICES)}")
        index = int(chosen.split(":")[1]) if ":" in chosen else 0
        available = {
            "cpu": True,
            "cuda": torch.cuda.is_available() and index < torch.cuda.device_count(),
            "mps": torch.backends.mps.is_available(),
        }
        if not available[kind]:
            names = ", ".join(name for name in DEVICES if available[name])
            raise RecipeError(
                f"--device {chosen}: torch finds none on this machine; it has {names}"
            )
        name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise RecipeError(f"--dtype '{name}': {did_you_mean(name, DTYPES)}")
        return cls(chosen, DTYPES[name], parse_size(max_memory))


def parse_size(text: str | int | None, option: str = "--max-memory") -> int | None:
    """`"8GB"` → 8,000,000,000; a number is one of bytes. Raises RecipeError."""
    if text is None:
        return None
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    match = re.fullmatch(
        r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMG]i?B)", str(text).strip(), re.IGNORECASE
    )
    if match is None or float(match[1]) == 0:
        raise RecipeError(f"{option} '{text!s:.60}': expected a size such as 8GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
