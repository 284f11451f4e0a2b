"""What is known of the layers that read units, where a denoiser is taken whole?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from ditprune.calls import Call
from ditprune.progress import Progress
from ditprune.shrinking.choice import pools
from ditprune.shrinking.moments import Demand, collect
from ditprune.shrinking.units import UnitGroup

_FLOAT = 4


class DemandStages:
    """What is known of layers that read units, whole pools together, as many as memory holds.

    What one stage holds is kept, so that it is not worked out twice.
    """

    def __init__(
        self, denoiser: nn.Module, groups: Mapping[str, UnitGroup], calls: Sequence[Call],
        max_bytes: int, progress: Progress,
    ) -> None:  # fmt: skip
        self._denoiser, self._calls, self._progress = denoiser, calls, progress
        self._stages = _stages(denoiser, groups, max_bytes)
        self._only: dict[str, Demand] | None = None

    def collected(self, what: str) -> Iterator[Mapping[str, Demand]]:
        """Stage by stage."""
        if self._only is not None:
            yield self._only
            return
        for number, names in enumerate(self._stages, start=1):
            what = f"following the output {number}/{len(self._stages)}"
            followed = collect(self._denoiser, names, self._counted(what))
            if len(self._stages) == 1:
                self._only = followed
            yield followed

    def _counted(self, what: str) -> Iterator[Call]:
        for number, call in enumerate(self._calls, start=1):
            yield call
            self._progress(what, number, len(self._calls))


def _stages(
    denoiser: nn.Module, groups: Mapping[str, UnitGroup], max_bytes: int
) -> list[list[str]]:
    """The layers that read units, in parts whose moments fit; one pool at least in each."""
    stages: list[list[str]] = []
    left = 0
    for pool in pools(groups):
        layers = sorted({c.layer for name in pool for c in groups[name].consumers})
        widths = [denoiser.get_parameter(f"{name}.weight").shape[1] for name in layers]
        size = sum(_FLOAT * (width + 1) ** 2 for width in widths)
        if not stages or size > left:
            stages.append([])
            left = max_bytes
        stages[-1] += layers
        left -= size
    return stages
