"""The command line that repeats an evaluation, from what Python was given."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from ditprune.calibration.placement import Placement
from ditprune.evaluation.protocol import Measures, Protocol

# Fields whose option has another name; of some, each value is an option of its own.
_NAMES = {"names": "metrics", "layers": "include", "pipeline_options": "pipeline-option"}
_REPEATED = ("layers", "pipeline_options")
_PROMPTS = "prompts.txt"


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


def options_of(given: Any, plain: Any) -> Iterator[str]:
    """The options that make a dataclass of them from its defaults.

    Prompts stand as `prompts.txt`, a file with one in each line.
    """
    for field in fields(given):
        value = getattr(given, field.name)
        if value == getattr(plain, field.name):
            continue
        flag = "--" + _NAMES.get(field.name, field.name).replace("_", "-")
        for text in _texts(field.name, value):
            yield from (flag, text)


def _texts(name: str, value: Any) -> list[str]:
    """What stands after an option, once or each time it is given."""
    if name == "prompts":
        return [_PROMPTS]
    if name == "max_memory":
        return [f"{Decimal(value) / 1000}KB"]
    if isinstance(value, Mapping):
        return [f"{key}={json.dumps(one, default=str)}" for key, one in value.items()]
    if isinstance(value, (tuple, list)):
        texts = [str(one) for one in value]
        return texts if name in _REPEATED else [",".join(texts)]
    return [str(value).removeprefix("torch.")]
