"""Which timesteps and conditions does a denoiser get together? Pairs to fit, and pairs aside.

Recorded calls hold some pairs; others are made of their conditions and of timesteps between theirs.
A condition that comes rarely, as a prompt does, is on one side alone: others will come that no
calibration has seen. What comes again and again (a label, the empty prompt) is on both, with
other timesteps.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import timestep_of
from ditprune.denoiser.layout import RowLayout
from ditprune.denoiser.rows import num_rows, take_rows

NUM_PAIRS = 4096
_ASIDE = 0.25  # of all pairs
_COMMON = 1 / 4  # of all rows: a condition that comes again, whatever it is
_COMMON_LABEL = 1 / 32
# Rows run together; numbers in their arguments, as hidden states take far more.
_MOST_ROWS, _MOST_NUMBERS = 64, 4_000_000

FIT, ASIDE = 0, 1


@dataclass(frozen=True, eq=False)
class PairCall:
    """A call of the denoiser.

    Args:
        sides: of each row, `FIT` or `ASIDE`.
    """

    call: Call
    sides: Tensor


class Pairs:
    """Pairs of the conditions and timesteps of calls; the same each time that they are gone over.

    Args:
        layout: takes calls apart and puts them together; without it they are run as they are.
    """

    def __init__(
        self, denoiser: nn.Module, calls: Sequence[Call], layout: RowLayout | None = None,
        num_pairs: int = NUM_PAIRS, seed: int = 0,
    ) -> None:  # fmt: skip
        self._denoiser, self._calls, self._layout = denoiser, list(calls), layout
        self._num_pairs, self._seed = num_pairs, seed
        self._keys = [self._keys_of(call) for call in self._calls]
        self._sides = _sides_of([key for keys in self._keys for key in keys])
        self._timesteps = _seen_timesteps(denoiser, self._calls)

    def __iter__(self) -> Iterator[PairCall]:
        """The recorded pairs first, half of all at most; then drawn ones."""
        drawn, seen = random.Random(self._seed), dict[Any, int]()
        generator = torch.Generator().manual_seed(self._seed)
        num_run, is_recorded = 0, True
        while num_run < self._num_pairs:
            for call, keys in self._batches(drawn):
                is_recorded = is_recorded and num_run < self._num_pairs // 2
                if not is_recorded:
                    call = self._with_other_timesteps(call, generator)
                sides = [
                    seen.setdefault(pair, self._side(pair[1], drawn))
                    for pair in zip(self._moments(call, len(keys)), keys, strict=True)
                ]
                yield PairCall(call, torch.tensor(sides))
                num_run += len(keys)
                if num_run >= self._num_pairs:
                    return
            is_recorded = False

    def _batches(self, drawn: random.Random) -> Iterator[tuple[Call, list[_Key]]]:
        """Every call in an order drawn anew, several in one where that goes."""
        order = drawn.sample(range(len(self._calls)), len(self._calls))
        while order:
            first = self._calls[order[0]]
            size = max(1, sum(leaf.numel() for leaf in first.leaves() if isinstance(leaf, Tensor)))
            num_together = min(_MOST_ROWS // len(self._keys[order[0]]), _MOST_NUMBERS // size)
            together, order = order[: max(1, num_together)], order[max(1, num_together) :]
            calls = [self._calls[number] for number in together]
            merged = self._layout.merged(calls) if self._layout and len(calls) > 1 else calls
            keys = [self._keys[number] for number in together]
            if len(merged) == 1:
                keys = [[key for part in keys for key in part]]
            yield from zip(merged, keys, strict=True)

    def _keys_of(self, call: Call) -> list[_Key]:
        """Of every row; rows that cannot be taken apart share theirs."""
        count = num_rows(call)
        if self._layout is not None:
            rows = self._layout.rows_of(call)
        else:
            rows = [take_rows(call, [row]) for row in range(count)]
        keys = [_key(self._denoiser, row) for row in rows]
        return keys if len(keys) == count else keys[:1] * count

    def _side(self, key: _Key, drawn: random.Random) -> int:
        side = self._sides[key]
        return side if side is not None else int(drawn.random() < _ASIDE)

    def _moments(self, call: Call, count: int) -> list[Any]:
        """The timestep of each row, as something to compare."""
        _, timestep = timestep_of(self._denoiser, call)
        if not isinstance(timestep, Tensor):
            return [timestep] * count
        values = timestep.detach().double().cpu()
        if values.ndim == 0 or len(values) != count:
            return [tuple(values.reshape(-1).tolist())] * count
        return [tuple(row) for row in values.reshape(count, -1).tolist()]

    def _with_other_timesteps(self, call: Call, generator: torch.Generator) -> Call:
        """Half of them as they were seen, half between two of these."""
        _, timestep = timestep_of(self._denoiser, call)
        if not isinstance(timestep, Tensor):
            return call
        pool, count = self._timesteps[_kind(timestep)], len(timestep) if timestep.ndim else 1
        first, second = (
            pool[torch.randint(len(pool), (count,), generator=generator)] for _ in "ab"
        )
        part = torch.rand(count, generator=generator, dtype=pool.dtype)
        part *= torch.randint(2, (count,), generator=generator)
        new = first + part.view(-1, *[1] * (pool.ndim - 1)) * (second - first)
        new = new if timestep.is_floating_point() else new.round()
        new = new.reshape(timestep.shape).to(timestep.device, timestep.dtype)
        return call.map(lambda leaf: new if leaf is timestep else leaf)


@dataclass(frozen=True)
class _Key:
    """A condition.

    Args:
        is_label: whether it is whole numbers alone.
    """

    digest: bytes
    is_label: bool


def _key(denoiser: nn.Module, row: Call) -> _Key:
    """Of all that a row holds beside the sample and the timestep."""
    _, timestep = timestep_of(denoiser, row)
    sample, digest, is_label = row.sample(), hashlib.blake2b(digest_size=16), True
    for leaf in row.leaves():
        if isinstance(leaf, Tensor) and leaf is not sample and leaf is not timestep:
            as_bytes = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(as_bytes.numpy().data)
            is_label = is_label and not leaf.is_floating_point()
    return _Key(digest.digest(), is_label)


def _sides_of(keys: Sequence[_Key]) -> Mapping[_Key, int | None]:
    """On which side a condition is; None for both."""
    counts, sides = Counter(keys), dict[_Key, int | None]()
    rare = []
    for key, count in counts.items():
        sides[key] = None
        if count < (_COMMON_LABEL if key.is_label else _COMMON) * len(keys):
            rare.append(key)
    every = round(1 / _ASIDE)
    if len(rare) >= every:
        sides |= {key: ASIDE if i % every == every - 1 else FIT for i, key in enumerate(rare)}
    return sides


def _kind(timestep: Tensor) -> Any:
    """Timesteps of one kind can be exchanged."""
    return timestep.dtype, timestep.shape[1:]


def _seen_timesteps(denoiser: nn.Module, calls: Sequence[Call]) -> dict[Any, Tensor]:
    """By kind, float64 on the CPU, a row for each; it is one dtype for all."""
    seen: dict[Any, list[Tensor]] = {}
    for call in calls:
        _, timestep = timestep_of(denoiser, call)
        if isinstance(timestep, Tensor):
            rows = timestep.detach().cpu().double().reshape(-1, *timestep.shape[1:])
            seen.setdefault(_kind(timestep), []).append(rows)
    return {kind: torch.cat(rows) for kind, rows in seen.items()}
