"""How does text that others wrote reach a terminal? As it is, and never as a command to it.

Names come from model folders, statistics and paths. A terminal obeys escape codes, and rich turns
`[b]` into bold and `:fire:` into a picture; none of that happens to what is written here.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text


class Terminal(Console):
    """Writes each text as one line without markup, with what is not printable written out."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(
            stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True
        )  # fmt: skip

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text passes here, the cells and titles of tables too."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        """Whoever prints decides what follows; rich would end the process."""
        raise BrokenPipeError


def printable(text: str) -> str:
    """The text with line breaks, escape codes and halves of characters written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def write_what_fits() -> None:
    """From now on stdout writes out what its encoding lacks, as stderr does, and goes on."""
    if hasattr(sys.stdout, "reconfigure"):  # not where something else stands in its place
        sys.stdout.reconfigure(errors="backslashreplace")
