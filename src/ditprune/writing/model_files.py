"""Which files belong to a model folder, by their names? All others may be anybody's.

A pipeline has `model_index.json`, folders of its components, and texts about it. A script, a
checkpoint of a training or a list of passwords that lies between them is not copied, not uploaded,
and not removed.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path, PurePath

from ditprune.errors import DitpruneError
from ditprune.writing.json_file import read_json

INDEX = "model_index.json"
MANIFEST = "ditprune.json"
COMPACT_MANIFEST = "ditprune-compact.json"
CARD = "README.md"
CARD_PICTURE = "ditprune.png"
MASK = "mask.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_TEXTS = ("README", "LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
# Configurations, weights, and what tokenizers are made of.
_PARTS = (".json", ".safetensors", ".txt", ".model", ".md", ".jinja", ".tiktoken")
_MOST_NAMED = 5
# Files that run where somebody loads the folder carelessly.
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", *PICKLES)


def components_of(root: Path) -> frozenset[str]:
    """The folders that model_index.json names; none for a denoiser alone."""
    try:
        index = read_json(root / INDEX)
    except DitpruneError:
        return frozenset()
    return frozenset(name for name, entry in index.items() if isinstance(entry, list))


def belongs(path: PurePath, components: Container[str]) -> bool:
    """Whether a path from the root of a pipeline is of its model; pickles are none."""
    if is_hidden(path):
        return False
    if len(path.parts) == 1:
        return path.name in (INDEX, CARD_PICTURE) or is_text(path.name)
    is_part = path.suffix in _PARTS or is_text(path.name)
    return path.parts[0] in components and is_part


def is_text(name: str) -> bool:
    """Whether a file is a card, or a licence."""
    return name.upper().startswith(_TEXTS)


def is_index(name: str) -> bool:
    """Whether a file says which shard holds which tensor."""
    return ".safetensors.index." in name and name.endswith(".json")


def is_hidden(path: PurePath) -> bool:
    """Whether it lies in a hidden folder, or is hidden itself."""
    return any(part.startswith(".") for part in path.parts)


def can_run(path: PurePath, components: Container[str]) -> bool:
    """Whether a file may be read or run when the model is loaded."""
    return path.suffix in _CODE or (len(path.parts) > 1 and path.parts[0] in components)


def named(paths: Sequence[str]) -> str:
    """The first paths of a list, and how many more there are."""
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(paths[:_MOST_NAMED]) + more


def files_below(root: Path) -> Iterator[PurePath]:
    """Every file, link and other thing that is no folder, from the root; hidden ones too."""
    for place, folders, files in os.walk(root):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted((*files, *links)):
            yield Path(place, name).relative_to(root)
