"""What does calibration know about a denoiser, in memory and in a file?

One safetensors file holds the statistics of all denoisers of a pipeline. Tensors hold the sums of
each state, once for all layers that share it. The metadata holds, by the component name of each
denoiser, which layer has which state, and the protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditprune.calls import NUM_BINS
from ditprune.denoisers import DENOISER, OfDenoisers, qualified, qualified_names
from ditprune.errors import OutputError, RecipeError, StatisticsError, did_you_mean
from ditprune.method.choices import as_globs
from ditprune.method.statistics.column_norm import ColumnNorm, finish_norm
from ditprune.writing.json_file import MALFORMED, parse_json
from ditprune.writing.paths import path_of
from ditprune.writing.tensors_file import save_tensors

_FORMAT = 2
_KEY = "ditprune.statistics"
_REST = ":rest"


@dataclass(frozen=True, repr=False)
class Statistics(OfDenoisers):
    """Column norms by layer name, the weights they belong to, and what else calibration noticed.

    Args:
        column_norms: the state of every layer that was called; layers that always received the
            same tensor (query, key and value) hold the same object.
        fingerprints: the fingerprint of every target's weight during calibration.
        num_calls: denoiser calls seen.
        never_called: targets that no call reached; they cannot be scored by activations.
        protocol: how the calls were made, for the reader (seed, timesteps, guidance …).
        num_inputs: how often each layer was called; more than `num_calls` if a call runs a layer
            more than once.
        unused: targets that are called but do not reach any output of the denoiser.
        padding: for each argument that masks tokens, (masked tokens, all tokens). Masked tokens
            enter the layers, so they count in the norms.
        blocks: the globs that said which modules are the blocks; empty if they were found.
    """

    column_norms: Mapping[str, ColumnNorm]
    fingerprints: Mapping[str, str]
    num_calls: int
    never_called: tuple[str, ...] = ()
    protocol: Mapping[str, object] = field(default_factory=dict)
    num_inputs: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    padding: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    component: str = DENOISER
    parts: Mapping[str, Statistics] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Mapping[str, Statistics]) -> Statistics:
        """The statistics of all denoisers of a pipeline as one."""
        if len(parts) == 1:
            ((component, statistics),) = parts.items()
            return replace(statistics, component=component)
        calls, first = sum(part.num_calls for part in parts.values()), next(iter(parts.values()))
        return cls(
            qualified({name: part.column_norms for name, part in parts.items()}),
            qualified({name: part.fingerprints for name, part in parts.items()}),
            calls,
            qualified_names({name: part.never_called for name, part in parts.items()}),
            first.protocol,
            qualified({name: part.num_inputs for name, part in parts.items()}),
            qualified_names({name: part.unused for name, part in parts.items()}),
            qualified({name: part.padding for name, part in parts.items()}),
            tuple(glob for part in parts.values() for glob in part.blocks),
            parts=parts,
        )

    def __repr__(self) -> str:
        names = ", ".join(self.denoisers)
        return (
            f"<Statistics of {len(self.column_norms)} layers over {self.num_calls} calls ({names})>"
        )

    def save(self, file: str | Path) -> None:
        """Write all of it to one safetensors file, or nothing; `ditprune.load_statistics` reads it.

            stats = ditprune.calibrate(pipe, calls)
            stats.save("stats.safetensors")
            stats = ditprune.load_statistics("stats.safetensors")

        A file of other content is not replaced. Raises OutputError.
        """
        _check_is_free(path_of(file))
        save_statistics(self.denoisers, path_of(file))

    def column_norm(
        self, name: str, weights: Sequence[float] | None = None
    ) -> Float32[Tensor, " in"]:
        """ℓ2 norm of each input channel of layer `name` over all tokens, float32 [C_in].

        Args:
            weights: the weight of each bin's squares, from noise to image; all 1 by default.

        Raises StatisticsError for weights if calls did not give their position.
        """
        state = self._state(name)
        if weights is None:
            return finish_norm(state)
        if len(state.tokens_in_bin) != len(weights) + 1 or state.tokens_in_bin[-1]:
            raise StatisticsError(
                "--timestep-weighting: the calibration calls did not say where between noise and "
                "image they were; calibrate with ditprune calibrate or with "
                "ditprune.Call(…, place=…)"
            )
        return finish_norm(state, [*weights, 0.0])

    @property
    def num_bins(self) -> int:
        """The number of bins between noise and image."""
        state = next(iter(self.column_norms.values()), None)
        return NUM_BINS if state is None else len(state.tokens_in_bin) - 1

    def num_tokens(self, name: str) -> int:
        """How many tokens entered layer `name`."""
        return self._state(name).num_tokens

    def _state(self, name: str) -> ColumnNorm:
        if name not in self.column_norms:
            raise StatisticsError(
                f"statistics: no layer '{name}'; {did_you_mean(name, self.column_norms)}"
            )
        return self.column_norms[name]


def findings(statistics: Statistics) -> list[str]:
    """What a reader should know before pruning with these statistics, one line each."""
    lines = []
    names = statistics.never_called
    if names:
        lines.append(f"never called in calibration, stays dense: {_some(names)}")
    if statistics.unused:
        lines.append(
            "called in vain, nothing of it reaches the output, so pruning it costs nothing: "
            f"{_some(statistics.unused)}"
        )
    repeated = [n for n, count in statistics.num_inputs.items() if count > statistics.num_calls]
    if repeated:
        lines.append(f"called more than once in a call, its norms add up: {_some(repeated)}")
    for argument, (masked, total) in statistics.padding.items():
        lines.append(
            f"{argument} masks {masked / total:.0%} of its tokens; they enter the layers and count "
            "in the norms all the same"
        )
    return lines


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _check_is_free(file: Path) -> None:
    """Refuse to replace anything but statistics. Raises OutputError."""
    if not file.exists():
        return
    try:
        read_statistics_file(file)
    except StatisticsError:
        raise OutputError(
            f"{file}: exists and holds no statistics of ditprune; choose another name"
        ) from None


def save_statistics(statistics: Mapping[str, Statistics], file: Path) -> None:
    """Write the statistics of each denoiser, all or nothing. Raises OutputError."""
    tensors: dict[str, Tensor] = {}
    denoisers = {name: _record(name, stats, tensors) for name, stats in statistics.items()}
    record = {"format": _FORMAT, "denoisers": denoisers}
    save_tensors(tensors, {_KEY: json.dumps(record)}, file)


def _record(denoiser: str, statistics: Statistics, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The record for the metadata; the sums go to `tensors`."""
    keys: dict[int, str] = {}
    layers = {}
    for name, state in statistics.column_norms.items():
        key = keys.setdefault(id(state), f"{denoiser}/column_norm.{name}")
        tensors.setdefault(key, state.sum_squares.cpu().contiguous())
        if state.rest.any():  # amplitudes spread so far that one float64 does not hold the sums
            tensors.setdefault(_rest_of(key), state.rest.cpu().contiguous())
        layers[name] = {"state": key, "tokens_in_bin": list(state.tokens_in_bin)}
    return {
        "fingerprints": dict(statistics.fingerprints),
        "num_calls": statistics.num_calls,
        "never_called": list(statistics.never_called),
        "protocol": dict(statistics.protocol),
        "num_inputs": dict(statistics.num_inputs),
        "unused": list(statistics.unused),
        "padding": {name: list(counts) for name, counts in statistics.padding.items()},
        "blocks": list(statistics.blocks),
        "layers": layers,
    }


def read_statistics_file(file: Path) -> dict[str, Statistics]:
    """Read statistics. Raises StatisticsError for a missing, damaged or other file."""
    if not file.is_file():
        raise StatisticsError(
            f"{file}: no such statistics file; make one with `ditprune calibrate`"
        )
    try:
        with safe_open(file, framework="pt") as content:
            metadata = (content.metadata() or {}).get(_KEY)
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StatisticsError(
            f"{file}: not a complete safetensors file ({error}); calibrate again"
        ) from None
    try:
        record = parse_json(metadata or "")
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {_FORMAT}")
        for key, sums in tensors.items():
            _check_sums(key, sums, tensors)
        return {str(name): _restore(stats, tensors) for name, stats in record["denoisers"].items()}
    except (RecipeError, *MALFORMED) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise StatisticsError(
            f"{file}: not statistics of ditprune ({reason}); calibrate again"
        ) from None


def _rest_of(key: str) -> str:
    """The key of what sums under `key` lack."""
    return f"{key}{_REST}"


def _check_sums(key: str, sums: Tensor, tensors: Mapping[str, Tensor]) -> None:
    if sums.dtype != torch.float64 or sums.ndim != 2:
        raise ValueError(f"{key} is {sums.dtype} {list(sums.shape)}, not float64 [bins, C_in]")
    if key.endswith(_REST):
        whole = tensors.get(key.removesuffix(_REST))
        if whole is None or whole.shape != sums.shape or not (whole + sums == whole).all():
            raise ValueError(f"{key} is not what the sums of a layer lack")
    elif not (sums.isfinite() & (sums >= 0)).all():
        raise ValueError(f"{key} holds a sum of squares that is negative, NaN or Inf")


def _restore(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistics:
    states: dict[str, ColumnNorm] = {}
    norms = {}
    for name, layer in record["layers"].items():
        key, counts = layer["state"], tuple(int(count) for count in layer["tokens_in_bin"])
        if len(counts) != len(tensors[key]):
            raise ValueError(f"{name} counts tokens in {len(counts)} bins of {len(tensors[key])}")
        rest = tensors.get(_rest_of(key), torch.zeros_like(tensors[key]))
        state = ColumnNorm(tensors[key], counts, rest)
        norms[name] = states.setdefault(key, state)
    return Statistics(
        norms,
        {str(name): str(value) for name, value in record["fingerprints"].items()},
        int(record["num_calls"]),
        _names(record["never_called"]),
        dict(record["protocol"]),
        {str(name): int(count) for name, count in record["num_inputs"].items()},
        _names(record["unused"]),
        {name: _padding(*counts) for name, counts in record["padding"].items()},
        as_globs("blocks", record.get("blocks", ())),  # older files have none
    )


def _names(values: Any) -> tuple[str, ...]:
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise ValueError(f"{values!r:.60} in place of names of layers")
    return tuple(values)


def _padding(masked: Any, total: Any) -> tuple[int, int]:
    if not 0 <= int(masked) <= int(total) or not int(total):
        raise ValueError(f"{masked!r:.20} of {total!r:.20} tokens masked")
    return int(masked), int(total)
