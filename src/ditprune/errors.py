"""What can go wrong because of what was given, as one small tree.

    DitpruneError              anything this package refuses; the message is one line for a person
    ├── RecipeError            an option, a name or a combination of options
    ├── ModelError             a model folder, its weights, or a module without blocks
    ├── TargetError            a target, or a pattern that should match one
    ├── StatisticsError        statistics that are missing, malformed or of another model
    ├── OutputError            a place that cannot be written
    ├── ResultsError           results of an evaluation that are missing or malformed
    └── KernelError            the sparse kernel, which cannot be built or cannot run on what it got

Every message says where, what was given, what was expected and what to do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches

# As torch says it on CPUs, of Linux and of Windows, and on GPUs outside its own allocator.
_NO_MEMORY = re.compile(
    r"allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)


class DitpruneError(Exception):
    """Base of every refusal; the command line prints it as one line and exits with 2."""


class RecipeError(DitpruneError):
    """An option, a name or a combination of options cannot be used."""


class ModelError(DitpruneError):
    """A model folder, a weight file or a module is not what pruning needs."""


class TargetError(DitpruneError):
    """A layer cannot be pruned as asked, or a pattern matches none."""


class StatisticsError(DitpruneError):
    """Statistics are missing, malformed, or belong to another model."""


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
