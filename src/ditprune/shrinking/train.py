"""How is a smaller block trained? Gradient steps on all of it towards what it gave before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.sweep import Step, forwards
from ditprune.method.distill import Distill
from ditprune.pruning.update.blockwise.run import BlockRefined
from ditprune.pruning.update.blockwise.teacher import BlockProblem, BlockTeacher, GainsOf
from ditprune.pruning.update.distill import rate_at, rate_for
from ditprune.pruning.update.gradients import outside_inference, training
from ditprune.pruning.update.trained import Trained
from ditprune.shrinking.moments import Road
from ditprune.shrinking.units import UnitGroup

SETTINGS = Distill(num_steps=800)


@dataclass(frozen=True, eq=False)
class TrainedBlock:
    """What training made of a smaller block.

    Args:
        tensors: by name in the denoiser, all that were trained; empty where it did not help.
    """

    tensors: Mapping[str, Tensor]
    refined: BlockRefined


def trained_names(groups: Mapping[str, UnitGroup], block: nn.Module, path: str) -> list[str]:
    """The parameters of a block that are trained: all that units have a share in, and biases."""
    inside = [group for group in groups.values() if group.block == path]
    tensors = {part.tensor for group in inside for part in group.parts}
    biases = {f"{c.layer}.bias" for group in inside for c in group.consumers}
    names = {f"{path}.{name}" for name, _ in block.named_parameters()}
    return sorted((tensors | biases) & names)


def trained_blocks(
    road: Road, calls: Sequence[Call], gains_of: GainsOf,
    smaller: Callable[[Step], nn.Module], names_of: Callable[[Step], Sequence[str]],
    done: Callable[[int], TrainedBlock | None], settings: Distill,
) -> Iterator[tuple[int, TrainedBlock]]:  # fmt: skip
    """Every block in turn; each gets what the trained blocks before it give.

    Args:
        smaller: gives a block as it is to become, apart from the dense one.
        names_of: gives the names of its parameters that are trained.
        done: gives what a run before made of a block.
    """
    teacher = BlockTeacher(
        road.chain, road.residence, outside_inference(calls), settings, road.make, gains_of
    )
    with closing(forwards(road.chain, [], road.residence, road.make)) as steps:
        for step in steps:
            block, names = smaller(step), names_of(step)
            result = done(step.number)
            if result is None and names:
                parameters = _below(block, step.path, names)
                result = _train(teacher, teacher.problem(step, block), parameters, step, settings)
            if result is not None and result.tensors:
                _put_(_below(block, step.path, result.tensors), result.tensors)
            teacher.follow(step, {}, block)
            if result is not None:
                yield step.number, result


def _below(
    block: nn.Module, path: str, names: Sequence[str] | Mapping[str, Tensor]
) -> dict[str, nn.Parameter]:
    return {name: block.get_parameter(name.removeprefix(f"{path}.")) for name in names}


@torch.no_grad()
def _put_(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _train(
    teacher: BlockTeacher, problem: BlockProblem, parameters: Mapping[str, nn.Parameter],
    step: Step, settings: Distill,
) -> TrainedBlock:  # fmt: skip
    """Train a block's parameters; those that did not help are put back."""
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    before = problem.error(teacher.aside)
    rate = rate_for(before, settings)
    every = {name: torch.ones((), device=p.device).expand(p.shape) for name, p in start.items()}
    trained, batches = Trained(parameters), teacher.drawn(step.number)
    with training(problem.block, list(parameters.values())):
        for number in range(settings.num_steps):
            backward = partial(problem.backward, next(batches))
            trained.step_(rate * rate_at(number, settings.num_steps), backward, every)
    after = problem.error(teacher.aside)
    told = BlockRefined(
        after < before, before, after if math.isfinite(after) else None,
        tuple(trained.unreached()),
    )  # fmt: skip
    if not told.is_taken:
        _put_(parameters, start)
        return TrainedBlock({}, told)
    return TrainedBlock({name: p.detach().clone() for name, p in parameters.items()}, told)
