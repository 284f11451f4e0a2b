"""What can go wrong because of what was given, as one small tree.

    DitpruneError              anything this package refuses; the message is one line for a person
    ├── RecipeError            an option, a name or a combination of options
    ├── ModelError             a model folder, its weights, or a module without blocks
    ├── TargetError            a target, or a pattern that should match one
    ├── StatisticsError        statistics that are missing, malformed or of another model
    ├── OutputError            a place that cannot be written
    ├── ResultsError           results of an evaluation that are missing or malformed
    ├── EndedError             another process of the same work ended; what is done stays
    └── KernelError            the sparse kernel, which cannot be built or cannot run on what it got

Every message says where, what was given, what was expected and what to do. It is written with the
options of the command line; `str` of it has Python's words, but inside `options_named`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

# As torch says it on CPUs, of Linux and of Windows, and on GPUs outside its own allocator.
_NO_MEMORY = re.compile(
    r"allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)

# A command in backticks, which stays as it is, or an option: `--max-error`.
_OPTION = re.compile(
    r"`[^`]*`|(?<![\w/.=-])--(?P<option>[a-z]+(?:-[a-z]+)*)(?![\w/.])(?P<gap> (?='|-?\d))?"
)
# The options that Python calls by more than their letters.
_IN_PYTHON = {
    "calibration-set": "batches", "overwrite": "overwrite=True", "statistics": "stats",
    "pipeline-option": "pipeline_options", "time-limit": "limit_s",
}  # fmt: skip


def in_python(text: str) -> str:
    """`"pass --max-error 0.1 or --mask"` → `"pass max_error=0.1 or mask"`."""
    return _OPTION.sub(_word_of, text)


def _word_of(match: re.Match[str]) -> str:
    option = match["option"]
    if option is None:
        return match[0]
    return _IN_PYTHON.get(option, option.replace("-", "_")) + ("=" if match["gap"] else "")


class DitpruneError(Exception):
    """Base of every refusal; the command line prints it as one line and exits with 2."""

    names_options = False

    def __str__(self) -> str:
        text = super().__str__()
        return text if DitpruneError.names_options else in_python(text)


@contextmanager
def options_named() -> Iterator[None]:
    """Refusals name options inside the block, for the person who typed some."""
    before, DitpruneError.names_options = DitpruneError.names_options, True
    try:
        yield
    finally:
        DitpruneError.names_options = before


class RecipeError(DitpruneError):
    """An option, a name or a combination of options cannot be used."""


class ModelError(DitpruneError):
    """A model folder, a weight file or a module is not what pruning needs."""


class TargetError(DitpruneError):
    """A layer cannot be pruned as asked, or a pattern matches none."""


class StatisticsError(DitpruneError):
    """Statistics are missing, malformed, or belong to another model."""


class EndedError(DitpruneError):
    """Another process of the same work has ended; what is done stays for the next run."""


class OutputError(DitpruneError):
    """The result cannot be written where it was asked for."""


class ResultsError(DitpruneError):
    """The results of an evaluation are missing, malformed, or of another format."""


class KernelError(DitpruneError):
    """The sparse kernel cannot be built here, or cannot run on these tensors."""


def reason_of(error: Exception) -> str:
    """The first line of what another library said; the kind of error where it said nothing."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was asked for that a machine or a GPU does not have."""
    torch = sys.modules.get("torch")  # which raises no error before it is imported
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def did_you_mean(given: object, known: Iterable[object]) -> str:
    """A clause naming the nearest known name, or all of them when none is near."""
    choices = sorted(map(str, known))
    near = get_close_matches(str(given), choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return "choose from " + ", ".join(choices[:12]) + (" …" if len(choices) > 12 else "")
