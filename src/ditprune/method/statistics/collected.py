"""What does calibration know about a whole denoiser? `calibrate` returns it, `prune` reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float32
from torch import Tensor

from ditprune.calls import NUM_BINS
from ditprune.errors import StatisticsError, did_you_mean
from ditprune.method.statistics.column_norm import ColumnNorm, finish_norm, merge_norms

# The first is the default. Source of the other: OBS-Diff, arXiv 2510.06751; its weights fall
# logarithmically from noise to image.
TIMESTEP_WEIGHTINGS = ("uniform", "log-decrease")
_FIRST_WEIGHT, _LAST_WEIGHT = 1.2, 0.8


@dataclass(frozen=True)
class Statistics:
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
    """

    column_norms: Mapping[str, ColumnNorm]
    fingerprints: Mapping[str, str]
    num_calls: int
    never_called: tuple[str, ...] = ()
    protocol: Mapping[str, object] = field(default_factory=dict)
    num_inputs: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    padding: Mapping[str, tuple[int, int]] = field(default_factory=dict)

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


def timestep_weights(weighting: str, num_bins: int) -> tuple[float, ...] | None:
    """The weight of each bin's squares, from noise to image; None for `uniform`, all 1."""
    if weighting == "uniform":
        return None
    span = math.log(num_bins) or 1.0
    fall = _FIRST_WEIGHT - _LAST_WEIGHT
    return tuple(_FIRST_WEIGHT - fall * math.log(1 + i) / span for i in range(num_bins))


def merge_statistics(first: Statistics, second: Statistics) -> Statistics:
    """The statistics of both calibrations of one model, as if they had been one."""
    if first.fingerprints != second.fingerprints:
        raise StatisticsError(
            "statistics: cannot merge calibrations of different weights; calibrate the same model"
        )
    merged: dict[tuple[int, int], ColumnNorm] = {}
    norms: dict[str, ColumnNorm] = {}
    for name in _union(first.column_norms, second.column_norms):
        a, b = first.column_norms.get(name), second.column_norms.get(name)
        if a is None or b is None:
            norms[name] = a or b  # type: ignore[assignment]
            continue
        key = (id(a), id(b))
        norms[name] = merged.setdefault(key, merge_norms(a, b))
    return Statistics(
        norms,
        first.fingerprints,
        first.num_calls + second.num_calls,
        tuple(n for n in first.never_called if n in second.never_called),
        first.protocol,
        {
            n: first.num_inputs.get(n, 0) + second.num_inputs.get(n, 0)
            for n in _union(first.num_inputs, second.num_inputs)
        },
        tuple(_union(dict.fromkeys(first.unused), dict.fromkeys(second.unused))),
        {
            n: tuple(
                a + b
                for a, b in zip(
                    first.padding.get(n, (0, 0)), second.padding.get(n, (0, 0)), strict=True
                )
            )  # type: ignore[misc]
            for n in _union(first.padding, second.padding)
        },
    )


def _union(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    return [*first, *(name for name in second if name not in first)]
