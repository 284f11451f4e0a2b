"""`ditprune.json` beside the denoiser's weights: what was done, and what the files must keep."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ditprune.writing.json_file import read_json
from ditprune.writing.output import MANIFEST

FORMAT = 1
_PACKAGES = ("ditprune", "torch", "numpy", "safetensors", "diffusers")


def versions() -> dict[str, str]:
    """The versions a result depends on."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }


def write(folder: Path, claims: Mapping[str, Any]) -> None:
    """Write the manifest of a denoiser folder."""
    content = {"format": FORMAT, "versions": versions(), **claims}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """Read it. Raises ModelError where it is missing or no JSON object."""
    return read_json(folder / MANIFEST)
