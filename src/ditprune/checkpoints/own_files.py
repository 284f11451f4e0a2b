"""Which files are a model's own? They are never an output, whatever name leads to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ditprune.checkpoints.locate import ModelFolder
from ditprune.errors import OutputError
from ditprune.writing.model_files import (
    COMPACT_MANIFEST,
    MANIFEST,
    MASK,
    PICKLES,
    belongs,
    components_of,
    files_below,
    is_index,
    is_text,
)

_STEM = "diffusion_pytorch_model"


def check_no_own_file(out: Path, model: ModelFolder) -> None:
    """Refuse a file of the model as an output, by way of links and second names too.

    Raises OutputError.
    """
    if not out.exists():
        return
    state = out.stat()
    for file in _own_files(model):
        if os.path.samestat(state, file.stat()):
            raise OutputError(
                f"{out}: is {file.relative_to(model.root)} of the model {model.name}; choose "
                "another name"
            )


def _own_files(model: ModelFolder) -> Iterator[Path]:
    """The files that belong to a model, its weights in all their forms among them."""
    components = components_of(model.root)
    for path in files_below(model.root):
        file = model.root / path
        if model.is_pipeline:
            is_own = belongs(path, components) or path.suffix in PICKLES
        else:
            is_own = _is_of_denoiser(path.name)
        is_own |= path.name in (MANIFEST, COMPACT_MANIFEST)
        if is_own and file.is_file() and path.name != MASK:  # which a save has put there
            yield file


def _is_of_denoiser(name: str) -> bool:
    is_weight = name.startswith(_STEM) or name.endswith(PICKLES)
    return name == "config.json" or is_weight or is_index(name) or is_text(name)
