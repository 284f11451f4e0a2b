"""The studies that look at a model and prune nothing: `statistics` and `importance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.calibrate import observe_calls
from ditprune.calibration.observe import Collector, observing
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.rows import to_placement
from ditprune.errors import RecipeError, StatisticsError, TargetError
from ditprune.method.granularity import CAG, heterogeneity
from ditprune.method.recipe import build
from ditprune.method.statistics import absolute
from ditprune.method.statistics.absolute import Absolute
from ditprune.method.statistics.collected import Statistics
from ditprune.pruning.plan import read_weights, scores_of
from ditprune.reproduce.workbench import Run
from ditprune.targets.discover import Target, discover, select
from ditprune.writing.files import installed_versions

# Of the histogram of |W|: the powers of ten between which its bins lie, and bins in each.
LOWEST, HIGHEST, BINS_PER_DECADE = -6, 1, 8
# A map is drawn in so many pixels at most, each the mean of those scores it stands for.
MAP_PIXELS = 256
_INPUTS = Collector[Absolute](
    lambda _channels, _device: Absolute(),
    lambda state, inputs, _place: absolute.update(state, inputs),
)


def look_at_statistics(run: Run, sampling: Sampling) -> dict[str, Any]:
    """|X|, |W| and their ratios for every target, and the histogram of |W| of each role."""
    pipeline, rows = load_pipeline(run.model, run.place), []
    histograms: dict[str, Tensor] = {}
    calls = _calls(run, pipeline, sampling)
    for name, denoiser in denoisers_of(pipeline, tuple(run.model.denoisers)).items():
        targets = discover(denoiser)
        own = [call for call in calls if call.denoiser == name]
        with observing(denoiser, targets, _INPUTS) as observation:
            for number, call in enumerate(own, start=1):
                observation.run(call)
                run.progress("observing", number, len(own))
        read = read_weights(Weights(run.model.denoisers[name]))
        for target in targets.values():
            weight = read(target).float().abs()
            counts = _histogram(weight)
            histograms[target.role] = histograms.get(target.role, torch.zeros_like(counts)) + counts
            inputs = observation.states.get(target.name, Absolute())
            rows.append(_named(run, name, target) | _sizes(weight, inputs))
    return {
        "rows": rows,
        "histograms": {
            "edges": _edges().tolist(),
            "counts": {role: counts.tolist() for role, counts in histograms.items()},
        },
        "protocol": _protocol(pipeline, sampling),
    }


def look_at_importance(
    run: Run, sampling: Sampling, layers: tuple[str, ...] | None
) -> dict[str, Any]:
    """G_out of every target under STW, and the importance maps of some: [C_out, C_in], reduced."""
    pipeline, rows, maps = load_pipeline(run.model, run.place), [], []
    denoisers = denoisers_of(pipeline, tuple(run.model.denoisers))
    asked = _asked_for(run, denoisers, layers) if layers else None
    calls = _calls(run, pipeline, sampling)
    recipe, cag = build(), CAG()
    for name, denoiser in denoisers.items():
        stats = _norms(run, denoiser, name, calls)
        targets = {k: t for k, t in discover(denoiser).items() if k not in stats.never_called}
        drawn = _one_of_each(targets) if asked is None else asked[name]
        read = read_weights(Weights(run.model.denoisers[name]))
        for number, target in enumerate(targets.values(), start=1):
            scores = scores_of(target, read(target), stats, recipe)
            g_out = heterogeneity(scores)
            chosen = cag.choose(g_out).name
            row = _named(run, name, target) | {"g_out": g_out, "granularity": chosen}
            rows.append(row)
            if target.name in drawn:
                maps.append({"name": row["name"], "map": _reduced(scores)})
            run.progress("scoring", number, len(targets))
    if not maps:
        raise TargetError(f"--include {' '.join(layers or ())}: no call reached these targets")
    protocol = _protocol(pipeline, sampling)
    return {"rows": rows, "maps": maps, "recipe": recipe.to_json(), "protocol": protocol}


def _calls(run: Run, pipeline: Any, sampling: Sampling) -> list[Any]:
    if not run.model.is_pipeline:
        raise RecipeError(f"{run.model.name}: is a bare denoiser; expected a pipeline to sample")
    run.progress("calibrating", 0, 1)
    found = sample_calls(pipeline, sampling, tuple(run.model.denoisers))
    run.progress("calibrating", 1, 1)
    return [to_placement(call, run.place.device, run.place.dtype) for call in found]


def _norms(run: Run, denoiser: nn.Module, name: str, calls: list[Any]) -> Statistics:
    own = [call for call in calls if call.denoiser == name]
    if not own:
        raise StatisticsError(
            f"{run.model.name}: no calibration call reached its {name}; sample more, or with the "
            "pipeline's own number of steps"
        )
    return observe_calls(denoiser, own, folder_fingerprints(run.model.denoisers[name]))


def _asked_for(
    run: Run, denoisers: Mapping[str, nn.Module], layers: tuple[str, ...]
) -> dict[str, set[str]]:
    """The targets of each denoiser that these globs match, by their own names or by their rows'.

    Raises TargetError for a glob that matches none of any.
    """
    found = {name: discover(denoiser) for name, denoiser in denoisers.items()}
    either = {
        key: target
        for name, own in found.items()
        for target in own.values()
        for key in (target.name, _prefix(run, name) + target.name)
    }
    chosen = select(either, layers)
    return {
        name: {one for one in own if {one, _prefix(run, name) + one} & chosen.keys()}
        for name, own in found.items()
    }


def _one_of_each(targets: Mapping[str, Target]) -> set[str]:
    """The first target of each role in the middle block of those that have it."""
    chosen = set()
    for role in dict.fromkeys(target.role for target in targets.values()):
        own = [target for target in targets.values() if target.role == role]
        depths = sorted({target.depth for target in own})
        middle = depths[len(depths) // 2]
        chosen.add(next(target.name for target in own if target.depth == middle))
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
    """What tells the layers of two denoisers apart; nothing where there is one."""
    return f"{denoiser}." if len(run.model.denoisers) > 1 else ""


def _sizes(weight: Tensor, inputs: Absolute) -> dict[str, float | None]:
    """Means and maxima, and the ratios of means; None where no call reached the layer."""
    known = inputs.count > 0 and inputs.mean > 0
    weight_mean, square = weight.mean().item(), weight.square().mean().item()
    return {
        "weight_mean": weight_mean,
        "weight_max": weight.max().item(),
        "input_mean": inputs.mean if inputs.count else None,
        "input_max": inputs.largest if inputs.count else None,
        "ratio": weight_mean / inputs.mean if known else None,
        "squared_ratio": square / inputs.mean if known else None,
    }


def _edges() -> Tensor:
    num_bins = (HIGHEST - LOWEST) * BINS_PER_DECADE
    return torch.logspace(LOWEST, HIGHEST, num_bins + 1, dtype=torch.float64)


def _histogram(weight: Tensor) -> Tensor:
    """Weights in each bin of |W|; those beyond the ends count in the first and the last."""
    edges = _edges()
    place = torch.bucketize(weight.flatten().double(), edges[1:-1], right=True)
    return torch.bincount(place, minlength=len(edges) - 1)


def _reduced(scores: Tensor) -> list[list[float]]:
    """At most 256 × 256 means over neighbouring scores."""
    height, width = (min(MAP_PIXELS, length) for length in scores.shape)
    pooled = nn.functional.adaptive_avg_pool2d(scores[None, None].float(), (height, width))
    return pooled[0, 0].tolist()


def _protocol(pipeline: Any, sampling: Sampling) -> dict[str, Any]:
    words = sampling.protocol(type(pipeline).__name__, type(pipeline.scheduler).__name__)
    return {**words, "versions": installed_versions()}
