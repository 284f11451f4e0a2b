"""How does a command line give globs over module paths? For all denoisers, or by name."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ditprune.errors import RecipeError
from ditprune.method.choices import flag
from ditprune.targets.blocks import Globs

blocks_option = click.option(
    "--blocks", multiple=True, metavar="[DENOISER=]GLOB",
    help="[default: found] where the transformer blocks are, as in 'layers.*'; repeatable",
)  # fmt: skip


def read_globs(word: str, given: Sequence[str]) -> Globs:
    """`("a.*", "b.*")` as it is; `("transformer=a.*",)` → {"transformer": ("a.*",)}.

    Raises RecipeError where only some of the globs name a denoiser.
    """
    pairs = [text.partition("=") for text in given]
    if not any(equals for _, equals, _ in pairs):
        return tuple(given)
    globs: dict[str, tuple[str, ...]] = {}
    for name, equals, glob in pairs:
        if not equals or not name or not glob:
            raise RecipeError(
                f"{flag(word)} '{name}{equals}{glob}': expected DENOISER=GLOB, as the others are"
            )
        globs[name] = (*globs.get(name, ()), glob)
    return globs
