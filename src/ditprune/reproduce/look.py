"""What do the weights, inputs and scores of a model look like? Nothing is pruned or drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.calibration.observe import Collector, observing
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.components import check_components
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.rows import to_placement
from ditprune.errors import TargetError
from ditprune.method.granularity import CAG, heterogeneity
from ditprune.method.words import build
from ditprune.pruning.plan import read_weights
from ditprune.pruning.scoring import scores_of
from ditprune.reproduce.workbench import Run
from ditprune.targets.blocks import globs_of
from ditprune.targets.discover import Target, discover, select
from ditprune.writing.files import installed_versions

# The histogram of |W|: the powers of ten between which its bins lie, and bins in each decade.
LOWEST, HIGHEST, BINS_PER_DECADE = -6, 1, 8
# A map has at most this many pixels on a side, each the mean of the scores that it stands for.
MAP_PIXELS = 256


@dataclass(frozen=True)
class AbsoluteInputs:
    """|X| over all tokens and channels of a layer's input (paper, Appendix A).

    Args:
        total: the sum of |X|.
        count: the number of values.
        largest: the largest |X|.
    """

    total: float = 0.0
    count: int = 0
    largest: float = 0.0

    @property
    def mean(self) -> float:
        """The mean of |X|; 0 if there are no values."""
        return self.total / self.count if self.count else 0.0

    def add(self, inputs: Float[Tensor, "*tokens in"]) -> AbsoluteInputs:
        """With a layer's input of any rank and dtype added."""
        if not inputs.numel():
            return self
        values = inputs.detach().float().abs()
        # float32 along channels, float64 across tokens
        total = self.total + values.sum(-1).cpu().double().sum().item()
        largest = max(self.largest, values.max().item())
        return AbsoluteInputs(total, self.count + values.numel(), largest)


_INPUTS = Collector[AbsoluteInputs](
    lambda _channels, _device: AbsoluteInputs(),
    lambda state, inputs, _progress_t: state.add(inputs),
)


def look_at_statistics(run: Run, sampling: Sampling) -> dict[str, Any]:
    """|X|, |W| and their ratios for every target, and the histogram of |W| of each role."""
    pipeline, rows = load_pipeline(run.model, run.placement), []
    histograms: dict[str, Tensor] = {}
    names, placement = tuple(run.model.denoisers), run.placement
    run.progress("sampling", 0, 1)
    calls = sample_calls(pipeline, sampling, names)
    run.progress("sampling", 1, 1)
    for name, denoiser in denoisers_of(pipeline, names).items():
        targets = discover(denoiser, blocks=globs_of(run.blocks, name))
        own_calls = [call for call in calls if call.denoiser == name]
        with observing(denoiser, targets, _INPUTS) as observation:
            for number, call in enumerate(own_calls, start=1):
                observation.run(to_placement(call, placement.device, placement.dtype))
                run.progress(f"observing {name}", number, len(own_calls))
        for target, weight in _weights(run, name, targets):
            counts = _histogram(weight)
            histograms[target.role] = histograms.get(target.role, torch.zeros_like(counts)) + counts
            inputs = observation.states.get(target.name, AbsoluteInputs())
            rows.append(_named(run, name, target) | _sizes(weight, inputs))
    return {
        "rows": rows,
        "histograms": {
            "edges": _edges().tolist(),
            "counts": {role: counts.tolist() for role, counts in histograms.items()},
        },
        "protocol": _protocol(run, sampling),
    }


def look_at_importance(
    run: Run, sampling: Sampling, layers: tuple[str, ...] | None
) -> dict[str, Any]:
    """G_out of every target under STW, and the importance maps of some: [C_out, C_in], reduced."""
    targets = {
        name: discover(skeleton(folder), blocks=globs_of(run.blocks, name))
        for name, folder in run.model.denoisers.items()
    }
    asked = _asked_for(run, targets, layers) if layers else None
    recipe, cag, rows, maps = build(), CAG(), [], []
    for name, stats in run.statistics(sampling).items():
        reached = {k: t for k, t in targets[name].items() if k not in stats.never_called}
        drawn = _one_of_each(reached) if asked is None else asked[name]
        for number, (target, weight) in enumerate(_weights(run, name, reached), start=1):
            scores = scores_of(target, weight, stats, recipe)
            g_out = heterogeneity(scores)
            row = _named(run, name, target)
            rows.append(row | {"g_out": g_out, "granularity": cag.choose(g_out).name})
            if target.name in drawn:
                maps.append({"name": row["name"], "map": _reduced(scores)})
            run.progress("scoring", number, len(reached))
    if not maps:
        raise TargetError(f"--include {' '.join(layers or ())}: no call reached these targets")
    protocol = _protocol(run, sampling)
    return {"rows": rows, "maps": maps, "recipe": recipe.to_json(), "protocol": protocol}


def _weights(
    run: Run, denoiser: str, targets: Mapping[str, Target]
) -> Iterator[tuple[Target, Tensor]]:
    """Each target with its weight [C_out, C_in]."""
    read = read_weights(Weights(run.model.denoisers[denoiser]))
    return ((target, read(target)) for target in targets.values())


def _asked_for(
    run: Run, targets: Mapping[str, Mapping[str, Target]], layers: tuple[str, ...]
) -> dict[str, set[str]]:
    """The targets of each denoiser that match these globs, by their own names or their rows'.

    Raises TargetError for a glob that matches no target of any denoiser.
    """
    by_either_name = {
        key: target
        for name, group in targets.items()
        for target in group.values()
        for key in (target.name, _prefix(run, name) + target.name)
    }
    chosen = select(by_either_name, layers)
    return {
        name: {key for key in group if {key, _prefix(run, name) + key} & chosen.keys()}
        for name, group in targets.items()
    }


def _one_of_each(targets: Mapping[str, Target]) -> set[str]:
    """The first target of each role in the middle block of those that have it."""
    chosen = set()
    for role in dict.fromkeys(target.role for target in targets.values()):
        alike = [target for target in targets.values() if target.role == role]
        depths = sorted({target.depth for target in alike})
        middle = depths[len(depths) // 2]
        chosen.add(next(target.name for target in alike if target.depth == middle))
    return chosen


def _named(run: Run, denoiser: str, target: Target) -> dict[str, Any]:
    prefix = _prefix(run, denoiser)
    return {
        "name": prefix + target.name,
        "layer": prefix + target.name.removeprefix(f"{target.block}."),
        "role": target.role,
        "depth": target.depth,
        "shape": list(target.shape),
    }


def _prefix(run: Run, denoiser: str) -> str:
    """What tells the layers of two denoisers apart; empty if there is one."""
    return f"{denoiser}." if len(run.model.denoisers) > 1 else ""


def _sizes(weight: Tensor, inputs: AbsoluteInputs) -> dict[str, float | None]:
    """Means and maxima, and the ratios of means; None if no call reached the layer."""
    weight = weight.float().abs()
    weight_mean, square = weight.mean().item(), weight.square().mean().item()
    return {
        "weight_mean": weight_mean,
        "weight_max": weight.max().item(),
        "input_mean": inputs.mean if inputs.count else None,
        "input_max": inputs.largest if inputs.count else None,
        "ratio": weight_mean / inputs.mean if inputs.mean else None,
        "squared_ratio": square / inputs.mean if inputs.mean else None,
    }


def _edges() -> Tensor:
    num_bins = (HIGHEST - LOWEST) * BINS_PER_DECADE
    return torch.logspace(LOWEST, HIGHEST, num_bins + 1, dtype=torch.float64)


def _histogram(weight: Tensor) -> Tensor:
    """Weights in each bin of |W|; those beyond the ends count in the first and the last bin."""
    edges = _edges()
    bins = torch.bucketize(weight.float().abs().flatten().double(), edges[1:-1], right=True)
    return torch.bincount(bins, minlength=len(edges) - 1)


def _reduced(scores: Tensor) -> list[list[float]]:
    """At most 256 × 256 means over neighbouring scores."""
    height, width = (min(MAP_PIXELS, length) for length in scores.shape)
    pooled = nn.functional.adaptive_avg_pool2d(scores[None, None].float(), (height, width))
    return pooled[0, 0].tolist()


def _protocol(run: Run, sampling: Sampling) -> dict[str, Any]:
    words = sampling.protocol(*check_components(run.model))
    return {**words, "versions": installed_versions()}
