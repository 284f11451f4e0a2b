"""How are gradients of a denoiser's predictions taken, and can they be?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.layout import RowLayout
from ditprune.denoiser.replay import Prediction, evaluating, predicted
from ditprune.errors import ModelError, is_out_of_memory, reason_of


def check_gradients(denoiser: nn.Module, names: Iterable[str], calls: Sequence[Call]) -> None:
    """Take gradients for one row, before anything long runs. Raises ModelError if there are none.

    Layers that no gradient reaches are not told here: another row may reach them.
    """
    weights = [denoiser.get_parameter(f"{name}.weight") for name in names]
    if any(weight.is_inference() for weight in weights):
        raise ModelError(
            f"{type(denoiser).__name__}: this recipe takes gradients, and its weights were made "
            "under torch.inference_mode(), which allows none; load the model outside of it"
        )
    why = "no gradient reaches a target, as its forward runs without (torch.no_grad)"
    try:
        with torch.inference_mode(False):
            call = outside_inference(calls[:1])[0]
            row = RowLayout(denoiser, [call]).rows_of(call)[0]
            with training(denoiser, weights), torch.enable_grad():
                loss = distance(prediction_of(denoiser, row), [])
                if loss.requires_grad:
                    loss.backward()
                if any(weight.grad is not None for weight in weights):
                    return
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        why = reason_of(error)
    raise no_gradients(denoiser, why)


def no_gradients(denoiser: nn.Module, why: str) -> ModelError:
    """For a recipe that takes gradients where there are none."""
    return ModelError(
        f"{type(denoiser).__name__}: this recipe takes gradients and gets none ({why}); leave the "
        "refinement out and let the reconstruction choose the mask (refinement=None, "
        "mask='reconstruction'), with allocation='sensitivity' or 'owl'"
    )


def outside_inference(calls: Sequence[Call]) -> list[Call]:
    """The calls with copies of what was made under torch.inference_mode(), which no gradient takes.

    Run it outside of that mode.
    """
    return [call.map(_normal) for call in calls]


def _normal(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def distance(given: Prediction, reference: Prediction) -> Tensor:
    """The mean relative error of all tensors of a prediction; their squares without reference."""
    if not reference:
        return torch.stack([tensor.float().square().mean() for _, tensor in given]).mean()
    distances = [relative(a, b) for (_, a), (_, b) in zip(given, reference, strict=True)]
    return (
        distances[0] if len(distances) == 1 else sum(distances[1:], distances[0]) / len(distances)
    )


def relative(output: Tensor, reference: Tensor) -> Tensor:
    """‖output − reference‖² / ‖reference‖², in float32 or wider."""
    if output.dtype in (torch.float16, torch.bfloat16):  # their squares overflow, or lose bits
        output, reference = output.float(), reference.float()
    scale = reference.square().mean().clamp_min(torch.finfo(reference.dtype).tiny)
    return (output - reference).square().mean() / scale


def prediction_of(denoiser: nn.Module, call: Call) -> Prediction:
    return predicted(denoiser(*call.args, **call.kwargs), call)


@contextmanager
def outputs_of(denoiser: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What these modules give back while the block runs: floating tensors, in order."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            items = output if isinstance(output, (tuple, list)) else [output]
            outputs[name] += [
                item for item in items if isinstance(item, Tensor) and item.is_floating_point()
            ]

        return hook

    handles = [denoiser.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def training(denoiser: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for these weights and no others; eval mode; all as it was afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in denoiser.parameters()]
    try:
        for parameter, *_ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for weight in weights:
            weight.requires_grad_(True)
        with torch.inference_mode(False), evaluating(denoiser):
            yield
    finally:
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
