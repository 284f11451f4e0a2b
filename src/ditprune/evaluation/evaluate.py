"""Dense against pruned: the same seeds, the same held-out denoiser calls, one table of numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.capture import denoisers_of
from ditprune.calibration.draw import conditions, draw
from ditprune.calibration.pipeline import load_denoiser, load_pipeline
from ditprune.calibration.placement import Placement
from ditprune.calibration.replay import predicted_noise, replay
from ditprune.calibration.rows import to_placement
from ditprune.calibration.sample import Sampling, sample_unit
from ditprune.calibration.seeds import item_seed
from ditprune.calibration.workers import Worker
from ditprune.calls import DENOISER, Call
from ditprune.checkpoints import manifest
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.output import results_folder, write_beside
from ditprune.errors import RecipeError
from ditprune.evaluation import judge
from ditprune.evaluation.claims import claimed_sparsity, zero_share
from ditprune.evaluation.grid import save_grid
from ditprune.metrics import relative_error, similarity
from ditprune.progress import Report, silent

FORMAT = 1


@dataclass(frozen=True)
class Protocol:
    """How samples are drawn; stands beside every number.

    Args:
        num_images: samples per model; item i draws condition i (in turn) from its own seed.
        seed: of the samples and of the held-out calls.
        num_inference_steps, guidance_scale: None is the pipeline's default.
        labels, prompts: what to draw; None is every label the pipeline knows, or our own prompts.
        num_held_out: denoiser calls for the relative error, from seeds no calibration uses.
        batch_size: images drawn together; changes speed, not which noise an item gets.
        height, width: of the images; None is the pipeline's default.
        pipeline_options: further arguments of the pipeline.
    """

    num_images: int = 500
    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    labels: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    num_held_out: int = 128
    batch_size: int = 50
    height: int | None = None
    width: int | None = None
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option in ("num_images", "num_held_out", "batch_size"):
            if getattr(self, option) < 1:
                flag = "--" + option.replace("_", "-")
                raise RecipeError(f"{flag} {getattr(self, option)}: expected at least 1")
        self.held_out()  # refuses what sampling would

    def held_out(self) -> Sampling:
        """Where the held-out calls come from."""
        return Sampling(
            self.num_held_out, "uniform", self.num_inference_steps, self.guidance_scale,
            self.labels, self.prompts, self.seed, purpose="held-out", height=self.height,
            width=self.width, pipeline_options=self.pipeline_options,
        )  # fmt: skip


def evaluate(
    dense: ModelFolder,
    pruned: Sequence[tuple[str, ModelFolder]],
    out: Path,
    protocol: Protocol,
    report: Report = silent,
    place: Placement | None = None,
    worker: Worker | None = None,
) -> dict[str, Any]:
    """Measure pruned models against their dense one; one model in memory at a time.

    Args:
        dense: a pipeline folder.
        pruned: (name, folder) pairs; pipelines or bare denoisers of the dense model's class.
        out: folder for `results.json` and `grid.png`, made if need be.
        place: where the models run.
        worker: which share of images and calls is this process's; the first one writes.

    Returns:
        What results.json holds: the protocol, and per model `sparsity_asked`, `sparsity`,
        `relative_error`, `ssim`, `psnr`, `fid`, `accuracy` (None where not available).

    Raises:
        DitpruneError: before sampling where it can be known.
    """
    _check_names(pruned)
    with results_folder(out):
        return _evaluate(
            dense, pruned, out, protocol, report, place or Placement(), worker or Worker()
        )


def _evaluate(
    dense: ModelFolder, pruned: Sequence[tuple[str, ModelFolder]], out: Path, protocol: Protocol,
    report: Report, place: Placement, worker: Worker,
) -> dict[str, Any]:  # fmt: skip
    pipeline = load_pipeline(dense, place)
    names = tuple(dense.denoisers)
    own = denoisers_of(pipeline, names)
    sparsities = [claimed_sparsity(model, own) for _, model in pruned]
    pool = conditions(pipeline, protocol.labels, protocol.prompts)
    asked = [pool[i % len(pool)] for i in range(protocol.num_images)]
    calls = held_out_calls(pipeline, protocol, report, names, worker)
    noise = {name: predictions(one, calls.get(name, []), place) for name, one in own.items()}
    images = {"dense": draw_images(pipeline, asked, protocol, "dense", report, worker)}
    rows = [_dense_row(images["dense"], asked)]
    for (name, model), (sparsity_asked, targets) in zip(pruned, sparsities, strict=True):
        error = relative_error.RelativeError()
        for component, folder in model.denoisers.items():
            setattr(pipeline, component, load_denoiser(folder, place))
            predicted = predictions(getattr(pipeline, component), calls.get(component, []), place)
            error = _error(error, predicted, noise[component])
        images[name] = draw_images(pipeline, asked, protocol, name, report, worker)
        rows.append({
            "name": name,
            "sparsity_asked": sparsity_asked,
            "sparsity": zero_share(model, targets),
            "relative_error": _total_error(error, worker),
            **_similarity(as_unit(images[name]), as_unit(images["dense"])),
            **judge.read(as_unit(images[name]), asked),
        })  # fmt: skip
    results = {
        "format": FORMAT,
        "protocol": _protocol(protocol, pipeline, dense, images["dense"], asked, place),
        "models": rows,
    }
    if worker.is_first:
        _write(results, images, out)
    worker.wait()
    return results


def _dense_row(images: Tensor, asked: Sequence[Any]) -> dict[str, Any]:
    return {
        "name": "dense", "sparsity_asked": 0.0, "sparsity": 0.0, "relative_error": 0.0,
        "ssim": None, "psnr": None, **judge.read(as_unit(images), asked),
    }  # fmt: skip


def _write(results: Mapping[str, Any], images: Mapping[str, Tensor], out: Path) -> None:
    save_grid(images, 10, out / "grid.png")
    with write_beside(out / "results.json") as part:
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _check_names(pruned: Sequence[tuple[str, ModelFolder]]) -> None:
    names = ["dense", *(name for name, _ in pruned)]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"evaluate: two models would be called the same ({', '.join(names)}); rename a folder"
        )


def _similarity(pruned: Tensor, dense: Tensor) -> dict[str, float]:
    return {
        "ssim": similarity.ssim(pruned, dense).mean().item(),
        "psnr": similarity.psnr(pruned, dense).mean().item(),
    }


def held_out_calls(
    pipeline: Any,
    protocol: Protocol,
    report: Report = silent,
    names: Sequence[str] = (DENOISER,),
    worker: Worker | None = None,
) -> dict[str, list[Call]]:
    """This worker's denoiser calls, by denoiser, from seeds that no calibration uses."""
    worker, sampling = worker or Worker(), protocol.held_out()
    units = [unit for unit in range(sampling.num_units) if worker.owns(unit)]
    calls: dict[str, list[Call]] = {}
    for number, unit in enumerate(units, start=1):
        for call in sample_unit(pipeline, sampling, unit, names)[0]:
            calls.setdefault(call.denoiser, []).append(call)
        report("held-out calls", number, len(units))
    return calls


def predictions(
    denoiser: nn.Module, calls: Sequence[Call], place: Placement | None = None
) -> list[Tensor]:
    """The predicted noise of every call, on the CPU."""
    place = place or Placement()
    moved = (to_placement(call, place.device, place.dtype) for call in calls)
    return [
        predicted_noise(output, call.sample().shape[1]).cpu()
        for output, call in zip(replay(denoiser, moved), calls, strict=True)
    ]


def relative_error_between(pruned: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    return relative_error.compute(_error(relative_error.RelativeError(), pruned, dense))


def _error(
    state: relative_error.RelativeError, pruned: Sequence[Tensor], dense: Sequence[Tensor]
) -> relative_error.RelativeError:
    for own, reference in zip(pruned, dense, strict=True):
        state = relative_error.update(state, own, reference)
    return state


def _total_error(state: relative_error.RelativeError, worker: Worker) -> float:
    total = relative_error.RelativeError()
    for one in worker.gather(state):
        total = relative_error.merge(total, one)
    return relative_error.compute(total)


def draw_images(
    pipeline: Any, asked: Sequence[Any], protocol: Protocol, name: str,
    report: Report = silent, worker: Worker | None = None,
) -> Tensor:  # fmt: skip
    """uint8 [N, C, H, W]: what a viewer would see; workers draw batches in turn."""
    worker = worker or Worker()
    starts = range(0, len(asked), protocol.batch_size)
    batches = {}
    for number, first in enumerate(starts):
        if not worker.owns(number):
            continue
        items = range(first, min(first + protocol.batch_size, len(asked)))
        batch = draw(
            pipeline,
            [asked[i] for i in items],
            [item_seed("evaluation", protocol.seed, i) for i in items],
            **protocol.held_out().run_options(),
        )
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)
        batches[number] = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
        report(f"images: {name}", items.stop, len(asked))
    everyone: dict[int, Tensor] = {}
    for some in worker.gather(batches):
        everyone |= some
    return torch.cat([everyone[number] for number in range(len(starts))])


def as_unit(images: Tensor) -> Tensor:
    return images.float() / 255


def _protocol(
    protocol: Protocol, pipeline: Any, dense: ModelFolder, images: Tensor, asked: Sequence[Any],
    place: Placement,
) -> dict[str, Any]:  # fmt: skip
    readable = judge.can_read(images, asked)
    return {
        **asdict(protocol),
        "dense": dense.root.resolve().name,
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "resolution": list(images.shape[2:]),
        "dtype": str(place.dtype).removeprefix("torch."),
        "device": place.device,
        "feature_extractor": judge.FEATURES if readable else judge.UNAVAILABLE,
        "versions": manifest.versions(),
    }
