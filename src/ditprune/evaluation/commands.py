"""The command line that repeats an evaluation, from what Python was given."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ditprune.denoiser.placement import Placement
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.reporting.commands import options_of


def evaluate_command(
    dense: str, pruned: Sequence[str], out: Path, protocol: Protocol, measures: Measures,
    place: Placement,
) -> str:  # fmt: skip
    """The command of an evaluation, defaults left out; see `options_of`."""
    return shlex.join([
        "ditprune", "evaluate", dense, *pruned, "-o", str(out),
        *options_of(protocol, Protocol()), *options_of(measures, Measures()),
        *options_of(place, Placement()),
    ])  # fmt: skip
