"""Which layers does a call run in vain, so that their output reaches no output of the denoiser?

The text half of a last block is often computed and dropped. Such layers have inputs and scores
like any other, but pruning them changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ditprune.calls import Call
from ditprune.denoiser.replay import evaluating, tensors_in
from ditprune.errors import ModelError

Change = Callable[[str, Tensor], Tensor]


def unused(denoiser: nn.Module, batch: Any, names: Iterable[str]) -> tuple[str, ...]:
    """The named layers that this call runs although their output changes nothing.

    Two tests must agree. In autograd's graph, no path leads from the layer to the output. And noise
    added to the layer's output leaves every bit of the denoiser's output unchanged. If the call
    writes into its arguments, such as a cache, these count as output.

    Never named are layers that the model runs inside `no_grad`, since they leave no graph, and
    layers whose result is mixed with others and cut away later, such as the text's queries in a
    joint attention, since a path leads on from them. If the same call gives two different
    outputs, no layer is named. This takes one forward pass, and at least two more if there are
    suspects.

    Args:
        denoiser: is not changed; its module state must not carry over from call to call.
        batch: one call, as in `calibrate`; is not changed.
        names: paths of layers that return one tensor.

    Raises:
        ModelError: the batch is of another kind, the output holds no tensor, or an operator of
            the denoiser refuses gradients on this device.
    """
    names, call = list(names), Call.of(batch)
    suspects = _unreached(denoiser, call, names)
    if not suspects:
        return ()
    dense = _tensors_with_noise(denoiser, call, [])
    silent = set(_without_effect(denoiser, call, suspects, dense))
    return tuple(name for name in names if name in silent)


def _unreached(denoiser: nn.Module, call: Call, names: Sequence[str]) -> list[str]:
    """Layers that ran, always with gradients, and from which no path leads to the output."""
    anchor = torch.zeros((), requires_grad=True)
    ran: dict[str, bool] = {}

    def mark(name: str, output: Tensor) -> Tensor:
        has_graph = torch.is_grad_enabled()
        ran[name] = ran.get(name, True) and has_graph
        return _Mark.apply(output, anchor.to(output.device), name) if has_graph else output

    try:
        with _recording(denoiser):
            reached = _marks_behind(_tensors_after(denoiser, call, names, mark))
    except RuntimeError as error:
        _tensors_with_noise(denoiser, call, [])  # a call that cannot run raises its own error
        raise ModelError(
            f"{type(denoiser).__name__}: its call runs, but not with gradients ({error}), so which "
            "layers are unused cannot be told; try another device or attention backend"
        ) from error
    return [name for name in names if ran.get(name) and name not in reached]


def _without_effect(
    denoiser: nn.Module, call: Call, names: Sequence[str], dense: Sequence[Tensor]
) -> list[str]:
    """Layers whose noise leaves every bit of the output; a group that changes it is halved."""
    noisy = _tensors_with_noise(denoiser, call, names)
    if len(noisy) == len(dense) and all(map(torch.equal, noisy, dense)):
        return list(names)
    if len(names) == 1:
        return []
    half = len(names) // 2
    return [
        name
        for part in (names[:half], names[half:])
        for name in _without_effect(denoiser, call, part, dense)
    ]


def _tensors_with_noise(denoiser: nn.Module, call: Call, names: Sequence[str]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def disturb(_name: str, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output + (1 + output.abs()) * noise

    with evaluating(denoiser):
        return _tensors_after(denoiser, call, names, disturb)


def _tensors_after(
    denoiser: nn.Module, call: Call, names: Sequence[str], change: Change
) -> list[Tensor]:
    """Run a copy of the call with layers' outputs changed; returns tensors of output and arguments.

    The random state is put back.
    """
    copied = call.copied()
    devices = sorted({p.device.index for p in denoiser.parameters() if p.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        for name in names:
            handle = denoiser.get_submodule(name).register_forward_hook(_hook(name, change))
            stack.callback(handle.remove)
        output = _tensors(denoiser(*copied.args, **copied.kwargs))
    if not output:
        raise ModelError(
            f"{type(denoiser).__name__}: its output holds no tensor; expected the predicted noise"
        )
    return [*output, *_tensors((copied.args, copied.kwargs))]


def _tensors(tree: Any) -> list[Tensor]:
    return [tensor for _, tensor in tensors_in(tree)]


def _hook(name: str, change: Change) -> Any:
    return lambda _module, _args, output: change(name, output)


@contextmanager
def _recording(denoiser: nn.Module) -> Iterator[None]:
    """Inside the block gradients flow from the marks only, and the graph keeps no tensor."""
    before = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        with (
            evaluating(denoiser),
            torch.inference_mode(False),
            torch.enable_grad(),
            saved_tensors_hooks(lambda _tensor: None, lambda _nothing: torch.empty(0)),
        ):
            yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


class _Mark(torch.autograd.Function):
    """Copies a layer's output; the node of the copy in the graph carries the layer's name.

    It is a copy because the model may write into it. The anchor makes it require a gradient.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, _anchor: Tensor, name: str) -> Tensor:
        ctx.ditprune_layer = name
        return output.clone()


def _marks_behind(tensors: Iterable[Tensor]) -> set[str]:
    """The names of all marks from which a path leads to any of these tensors."""
    nodes = [tensor.grad_fn for tensor in tensors]
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(following for following, _ in node.next_functions)
    return {node.ditprune_layer for node in seen if hasattr(node, "ditprune_layer")}
