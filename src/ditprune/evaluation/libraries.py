"""What metrics are made with besides ditprune: libraries, weights on this machine, given files."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ditprune.evaluation.metrics import image_reward, lpips
from ditprune.evaluation.protocol import EXTRACTORS, Measures

LIBRARIES = ("torchmetrics", "torch-fidelity", "torchvision", "transformers", "image-reward")
_INCEPTION = "weights-inception-*.pth"  # as torch-fidelity names them; to ask it is to import it


def versions() -> dict[str, str]:
    """Those of the libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hub_folder() -> Path:
    """Where torch's hub keeps weights that were fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def stamp(measures: Measures) -> dict[str, Any]:
    """What decides, besides the images, which metrics can be had and what they say.

    Files are known by their names, sizes and times; of weights that libraries fetch, only whether
    they are here.
    """
    given = {"reference": measures.reference, "clip": Path(measures.clip)}
    if measures.feature_extractor not in EXTRACTORS:
        given["feature_extractor"] = Path(measures.feature_extractor)
    fetched = [*hub_folder().glob(_INCEPTION), *hub_folder().glob(lpips.WEIGHTS)]
    fetched += [image_reward.WEIGHTS.expanduser()]
    return {
        "versions": versions(),
        "files": {name: _stamp_of(path) for name, path in given.items() if path is not None},
        "weights": sorted(file.name for file in fetched if file.is_file()),
        "clip": _has_clip(measures.clip),
    }


def _stamp_of(path: Path) -> str | None:
    """A hash of the names, sizes and times of a file, or of all files of a folder."""
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            state = file.stat()
            name = file.relative_to(path).as_posix()
            digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _has_clip(model: str) -> bool:
    """Whether the hub's cache holds a model; a folder is none of its."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return False
