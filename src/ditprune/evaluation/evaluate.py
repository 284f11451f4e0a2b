"""Dense against pruned: the same seeds, the same held-out denoiser calls, one table of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.pipeline import (
    check_denoiser,
    conditions,
    draw,
    load_denoiser,
    load_pipeline,
)
from ditprune.calibration.replay import predicted_noise, replay
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.calibration.seeds import item_seed
from ditprune.calls import Call
from ditprune.checkpoints import manifest
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.output import MANIFEST, ensure_folder, write_beside
from ditprune.errors import ModelError, RecipeError
from ditprune.evaluation import judge
from ditprune.evaluation.grid import save_grid
from ditprune.metrics import relative_error, similarity
from ditprune.progress import Report, silent
from ditprune.targets.discover import discover

FORMAT = 1


@dataclass(frozen=True)
class Protocol:
    """How samples are drawn; stands beside every number.

    Args:
        num_images: samples per model; item i draws condition i (in turn) from its own seed.
        seed: of the samples and of the held-out calls.
        num_inference_steps, guidance_scale: None is the pipeline's default.
        labels, prompts: what to draw; None is every label the pipeline knows.
        num_held_out: denoiser calls for the relative error, from seeds no calibration uses.
        batch_size: images drawn together; changes speed, not which noise an item gets.
    """

    num_images: int = 500
    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    labels: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    num_held_out: int = 128
    batch_size: int = 50

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
            self.labels, self.prompts, self.seed, purpose="held-out",
        )  # fmt: skip


def evaluate(
    dense: ModelFolder,
    pruned: Sequence[tuple[str, ModelFolder]],
    out: Path,
    protocol: Protocol,
    report: Report = silent,
) -> dict[str, Any]:
    """Measure pruned models against their dense one; one denoiser in memory at a time.

    Args:
        dense: a pipeline folder.
        pruned: (name, folder) pairs; pipelines or bare denoisers of the dense model's class.
        out: folder for `results.json` and `grid.png`, made if need be.

    Returns:
        What results.json holds: the protocol, and per model `sparsity_asked`, `sparsity`,
        `relative_error`, `ssim`, `psnr`, `fid`, `accuracy` (None where not available).

    Raises:
        DitpruneError: before sampling where it can be known.
    """
    _check_names(pruned)
    pipeline = load_pipeline(dense)
    sparsities = [_claimed_sparsity(model, pipeline.transformer) for _, model in pruned]
    asked = conditions(pipeline, protocol.labels, protocol.prompts)
    asked = [asked[i % len(asked)] for i in range(protocol.num_images)]
    ensure_folder(out)
    calls = list(held_out_calls(pipeline, protocol, report))
    noise = predictions(pipeline.transformer, calls)
    images = {"dense": draw_images(pipeline, asked, protocol, "dense", report)}
    rows: list[dict[str, Any]] = [{
        "name": "dense", "sparsity_asked": 0.0, "sparsity": 0.0, "relative_error": 0.0,
        "ssim": None, "psnr": None, **judge.read(as_unit(images["dense"]), asked),
    }]  # fmt: skip
    for (name, model), (sparsity_asked, targets) in zip(pruned, sparsities, strict=True):
        pipeline.transformer = load_denoiser(model, type(pipeline.transformer))
        own = predictions(pipeline.transformer, calls)
        images[name] = draw_images(pipeline, asked, protocol, name, report)
        rows.append({
            "name": name,
            "sparsity_asked": sparsity_asked,
            "sparsity": _zero_share(pipeline.transformer, targets),
            "relative_error": relative_error_between(own, noise),
            **_similarity(as_unit(images[name]), as_unit(images["dense"])),
            **judge.read(as_unit(images[name]), asked),
        })  # fmt: skip
    results = {
        "format": FORMAT,
        "protocol": _protocol(protocol, pipeline, dense, images["dense"], asked),
        "models": rows,
    }
    save_grid(images, 10, out / "grid.png")
    with write_beside(out / "results.json") as part:
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


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


def held_out_calls(pipeline: Any, protocol: Protocol, report: Report) -> Iterator[Call]:
    """Denoiser calls from seeds that no calibration uses."""
    done = 0
    for batch in sample_calls(pipeline, protocol.held_out()):
        done = min(done + protocol.held_out().batch_size, protocol.num_held_out)
        report("held-out calls", done, protocol.num_held_out)
        yield from batch


def predictions(denoiser: nn.Module, calls: Sequence[Call]) -> list[Tensor]:
    """The predicted noise of every call."""
    return [
        predicted_noise(output, call.sample().shape[1])
        for output, call in zip(replay(denoiser, calls), calls, strict=True)
    ]


def relative_error_between(pruned: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    state = relative_error.RelativeError()
    for own, reference in zip(pruned, dense, strict=True):
        state = relative_error.update(state, own, reference)
    return relative_error.compute(state)


def draw_images(
    pipeline: Any, asked: Sequence[Any], protocol: Protocol, name: str, report: Report
) -> Tensor:
    """uint8 [N, C, H, W]: what a viewer would see."""
    batches = []
    for first in range(0, len(asked), protocol.batch_size):
        items = range(first, min(first + protocol.batch_size, len(asked)))
        seeds = [item_seed("evaluation", protocol.seed, i) for i in items]
        batch = draw(
            pipeline, [asked[i] for i in items], seeds, protocol.num_inference_steps,
            protocol.guidance_scale,
        )  # fmt: skip
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)
        batches.append((pixels * 255).round().clamp(0, 255).to(torch.uint8))
        report(f"images: {name}", items.stop, len(asked))
    return torch.cat(batches)


def as_unit(images: Tensor) -> Tensor:
    return images.float() / 255


def _claimed_sparsity(model: ModelFolder, dense: nn.Module) -> tuple[Any, list[str]]:
    """What the manifest asked for, and the targets; refuses a model that is not the dense one's."""
    tree = check_denoiser(model)
    shapes, expected = (
        {name: tuple(parameter.shape) for name, parameter in one.named_parameters()}
        for one in (tree, dense)
    )
    if shapes != expected:
        raise ModelError(
            f"{model.name}: its parameters have other names or shapes than the dense model's; "
            "expected a pruned copy of it"
        )
    if not (model.denoiser / MANIFEST).is_file():
        return None, list(discover(tree))
    claims = manifest.read(model.denoiser)
    try:
        recipe, targets = claims["recipe"], list(claims["targets"])
        asked = recipe["pattern"] or recipe["sparsity"]
        for name in targets:
            tree.get_parameter(f"{name}.weight")
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{model.name}: its {MANIFEST} cannot be read ({error!r}); run `ditprune verify`"
        ) from None
    return asked, targets


def _zero_share(denoiser: nn.Module, targets: Sequence[str]) -> float:
    """The share of zeros counted in the loaded targets."""
    weights = [denoiser.get_parameter(f"{name}.weight") for name in targets]
    num_zero = sum(weight.numel() - int(torch.count_nonzero(weight)) for weight in weights)
    return num_zero / sum(weight.numel() for weight in weights)


def _protocol(
    protocol: Protocol, pipeline: Any, dense: ModelFolder, images: Tensor, asked: Sequence[Any]
) -> dict[str, Any]:
    readable = judge.can_read(images, asked)
    return {
        **asdict(protocol),
        "dense": dense.root.resolve().name,
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "resolution": list(images.shape[2:]),
        "feature_extractor": judge.FEATURES if readable else judge.UNAVAILABLE,
        "versions": manifest.versions(),
    }
