"""The statistics of a whole denoiser: what `calibrate` returns and `prune` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float32
from torch import Tensor

from ditprune.errors import StatisticsError, did_you_mean
from ditprune.statistics import column_norm
from ditprune.statistics.column_norm import ColumnNorm


@dataclass(frozen=True)
class Statistics:
    """Column norms by layer name, and whose they are.

    Args:
        column_norms: the state of every layer that was called; layers that always received the
            same tensor (query, key and value) hold the same object.
        fingerprints: of every target's weight as the calibration saw it.
        num_calls: denoiser calls seen.
        never_called: targets that no call reached; they cannot be scored by activations.
        protocol: how the calls were made, for the reader (seed, timesteps, guidance …).
    """

    column_norms: Mapping[str, ColumnNorm]
    fingerprints: Mapping[str, str]
    num_calls: int
    never_called: tuple[str, ...] = ()
    protocol: Mapping[str, object] = field(default_factory=dict)

    def column_norm(self, name: str) -> Float32[Tensor, " in"]:
        """ℓ2 norm of each input channel of layer `name` over all tokens, float32 [C_in]."""
        return column_norm.finish(self._state(name))

    def num_tokens(self, name: str) -> int:
        """How many tokens entered layer `name`."""
        return self._state(name).num_tokens

    def _state(self, name: str) -> ColumnNorm:
        if name not in self.column_norms:
            raise StatisticsError(
                f"statistics: no layer '{name}'; {did_you_mean(name, self.column_norms)}"
            )
        return self.column_norms[name]


def merge(first: Statistics, second: Statistics) -> Statistics:
    """The statistics of both calibrations of one model, as if they had been one."""
    if first.fingerprints != second.fingerprints:
        raise StatisticsError(
            "statistics: cannot merge calibrations of different weights; calibrate the same model"
        )
    merged: dict[tuple[int, int], ColumnNorm] = {}
    norms: dict[str, ColumnNorm] = {}
    for name in [
        *first.column_norms,
        *(n for n in second.column_norms if n not in first.column_norms),
    ]:
        a, b = first.column_norms.get(name), second.column_norms.get(name)
        if a is None or b is None:
            norms[name] = a or b  # type: ignore[assignment]
            continue
        key = (id(a), id(b))
        norms[name] = merged.setdefault(key, column_norm.merge(a, b))
    missing = tuple(n for n in first.never_called if n in second.never_called)
    return Statistics(
        norms, first.fingerprints, first.num_calls + second.num_calls, missing, first.protocol
    )
