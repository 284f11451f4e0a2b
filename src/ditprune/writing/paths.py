"""Which path was given? `~` is the user's home everywhere, as a shell has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ditprune.errors import DitpruneError, OutputError


def path_of(given: Any, error_type: type[DitpruneError] = OutputError) -> Path:
    """The path that a text or a path stands for. Raises an error of `error_type`."""
    if not isinstance(given, (str, Path)):
        raise error_type(f"{type(given).__name__} given, expected a path as text or pathlib.Path")
    if given == "":
        raise error_type("an empty text given, expected a path")
    if "\0" in str(given):
        raise error_type(f"{str(given)!r:.60}: holds NUL, which no path does")
    return Path(os.path.expanduser(given))  # noqa: PTH111  (leaves an unknown ~user as it is)
