"""How is a path read from the command line? Without torch, since `--help` imports this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ditprune.writing.paths import path_of


class _PathType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A path, with `~` for the home."""

    name = "path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:  # fmt: skip
        return path_of(value)


PATH = _PathType()
