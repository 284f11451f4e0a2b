"""A JSON object from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ditprune.errors import ModelError

# What reading values raises where a file of ours is JSON, but not in the form that we write.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError with the file's name."""
    if file.exists() and not file.is_file():  # a pipe would be waited for, a device has no end
        raise ModelError(f"{file}: is no regular file; expected a JSON object")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{file}: cannot be read as JSON ({error}); expected a JSON object"
        ) from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: holds {type(content).__name__}, expected a JSON object")
    return content
