"""What must not change between two runs that share one piece of work, and what did change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_LONGEST = 60


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: before → now` for every value that is not the same, nested keys with dots."""
    changed = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(f"{prefix}{key}: {_short(old)} → {_short(new)}")
    return changed


def config_hash(root: Path) -> str:
    """One hash of every JSON file of a model folder: configurations, schedules, tokenizers."""
    digest = hashlib.sha256()
    for file in sorted(file for file in root.rglob("*.json") if file.is_file()):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def stamp_of(files: Iterable[Path], root: Path) -> str:
    """One hash of the names below `root`, the sizes and the times of files."""
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        path = file.relative_to(root).as_posix()
        digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
