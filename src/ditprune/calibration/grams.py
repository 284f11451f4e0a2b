"""XᵀX of targets, a stage at a time: as many layers as a memory limit holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from ditprune.calibration.observe import Collector, observing, watching
from ditprune.calls import Call
from ditprune.denoiser.replay import run_call
from ditprune.errors import StatisticsError
from ditprune.method.statistics import gram
from ditprune.method.statistics.collected import bin_of
from ditprune.method.statistics.gram import Gram
from ditprune.targets.discover import Target

_FLOAT = 4
_COPIES = 2  # a state and its successor while it is updated


def stages(
    targets: Mapping[str, Target], num_packages: int, max_bytes: int
) -> list[list[str]]:  # fmt: skip
    """Targets in module order, cut into packages, and these where Grams would exceed `max_bytes`.

    Each stage is a pass over the calibration calls. Inputs that layers share are counted once for
    each, so a stage may take less. A target whose Gram alone exceeds the limit is a stage of its
    own.

    Args:
        num_packages: runs of blocks, as even as whole blocks allow.
    """
    return [
        names for package in _packages(targets, num_packages) for names in _cut(package, max_bytes)
    ]


def _cut(targets: Mapping[str, Target], max_bytes: int) -> list[list[str]]:
    """As many targets to a stage as fit."""
    found: list[list[str]] = []
    size = 0
    for name, target in targets.items():
        own = gram_bytes(target)
        if not found or size + own > max_bytes:
            found.append([])
            size = 0
        found[-1].append(name)
        size += own
    return found


def _packages(targets: Mapping[str, Target], num_packages: int) -> list[dict[str, Target]]:
    """Targets in module order in so many runs of blocks, as even as whole blocks allow."""
    blocks = list(dict.fromkeys(target.block for target in targets.values()))
    found: list[dict[str, Target]] = [{} for _ in range(min(num_packages, len(blocks)))]
    for name, target in targets.items():
        found[blocks.index(target.block) * len(found) // len(blocks)][name] = target
    return found


def gram_bytes(target: Target) -> int:
    """What collecting one target's Gram takes."""
    return _COPIES * _FLOAT * target.shape[1] ** 2


def collect_grams(
    denoiser: nn.Module,
    calls: Iterable[Call],
    names: Sequence[str],
    timestep_weights: Sequence[float] | None = None,
) -> dict[str, Gram]:
    """The Gram of each named layer's inputs over these calls; layers never called are left out.

    Raises StatisticsError for weights where a call does not say where it is, and for NaN or Inf.
    """

    def update(state: Gram, inputs: Tensor, place: float | None) -> Gram:
        if timestep_weights is None:
            return gram.update(state, inputs)
        return gram.update(state, inputs * _weight(timestep_weights, place) ** 0.5)

    with observing(denoiser, names, Collector(gram.start, update)) as observation:
        for call in calls:
            with watching(observation, call.place):
                run_call(denoiser, call)
    for name, state in observation.states.items():
        if not state.sum_products.isfinite().all():
            raise StatisticsError(
                f"{name}: its calibration inputs hold NaN or Inf; look at the calls, or run the "
                "denoiser in float32 or bfloat16"
            )
    return observation.states


def _weight(weights: Sequence[float], place: float | None) -> float:
    if place is None:
        raise StatisticsError(
            "--timestep-weighting: a call does not say where between noise and image it is; give "
            "ditprune.Call(…, place=…), or weight uniformly"
        )
    return weights[bin_of(place, len(weights))]
