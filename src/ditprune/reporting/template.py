"""How is a template of ours filled in?"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from ditprune.reporting import numbers

TEMPLATES = Path(__file__).parent / "templates"


def fill(name: str, is_html: bool = False, **context: Any) -> str:
    """The text of a template; `n` is `numbers` there.

    Args:
        is_html: whether values are escaped.

    Raises jinja2.UndefinedError for a value that the template names and `context` lacks.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=is_html, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(words=words, fenced=fenced)
    return environment.get_template(name).render(n=numbers, **context)


def words(text: object) -> str:
    """Text as one line of Markdown that shows it as it is."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(line, quote=False))


def fenced(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
