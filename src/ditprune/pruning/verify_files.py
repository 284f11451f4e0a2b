"""Are the parts beside the denoisers those that were copied, and is there no other that may run?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePath

from ditprune.checkpoints.copy_folder import sha256_of
from ditprune.checkpoints.locate import ModelFolder
from ditprune.errors import DitpruneError
from ditprune.writing.files import MANIFEST, read_manifest
from ditprune.writing.json_file import MALFORMED
from ditprune.writing.model_files import can_run, components_of, files_below, is_hidden
from ditprune.writing.replaceable import BESIDE, listed_files


def false_files(model: ModelFolder) -> Iterator[str]:
    """One line for each part that is not the one that was copied, and for each that was not.

    Older manifests, and those of a denoiser that was pruned alone, list no parts.
    """
    copied = _copied(model)
    for path, digest in sorted(copied.items()):
        file = model.root / path
        if not file.is_file():
            yield f"{path}: missing from the folder, as {MANIFEST} lists it"
        elif sha256_of(file) != digest:
            yield f"{path}: its bytes are not those that were copied"
    if copied:
        listed, components = listed_files(model.root), components_of(model.root)
        for path in files_below(model.root):
            if not is_hidden(path) and path not in listed and can_run(path, components):
                yield f"{path}: is in the folder and in no {MANIFEST}"


def _copied(model: ModelFolder) -> dict[PurePath, str]:
    """The hashes of the parts by their path from the root."""
    copied: dict[PurePath, str] = {}
    for folder in model.denoisers.values() if model.is_pipeline else ():
        try:
            beside = read_manifest(folder).get(BESIDE, {}).items()
            for name, digest in beside:
                path = PurePath(os.path.normpath(folder.relative_to(model.root) / name))
                if path.parts[0] != ".." and not path.is_absolute():
                    copied[path] = str(digest)
        except (DitpruneError, *MALFORMED):  # which is told of the denoiser
            continue
    return copied
