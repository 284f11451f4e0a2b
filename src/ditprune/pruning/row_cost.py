"""What does one row of a denoiser call cost? Counted on the meta device, where nothing is computed.

That gives the order of magnitude only: the choice of masks and the transfer of data are no
operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ditprune.calls import Call
from ditprune.denoiser.capture import counting_tokens
from ditprune.denoiser.replay import run_call
from ditprune.denoiser.rows import num_rows
from ditprune.errors import ModelError
from ditprune.targets.discover import Target


@dataclass(frozen=True)
class BlockCost:
    """What one row is to a block.

    Args:
        num_operations: floating-point operations of a forward pass.
        num_given: numbers that it gives to the next.
    """

    num_operations: float
    num_given: float


@dataclass(frozen=True)
class RowCost:
    """What one row of a denoiser call is.

    Args:
        num_operations: floating-point operations of a forward pass, a product and a sum being two.
        num_tokens: by target, tokens that reach it.
        blocks: by path, of the blocks with targets.
    """

    num_operations: float
    num_tokens: Mapping[str, float]
    blocks: Mapping[str, BlockCost] = field(default_factory=dict)

    @property
    def num_outside(self) -> float:
        """Operations of what lies before, between and behind the blocks."""
        return self.num_operations - sum(block.num_operations for block in self.blocks.values())


def row_cost(skeleton: nn.Module, targets: Mapping[str, Target], call: Call) -> RowCost:
    """Of one row of a call, on a denoiser without weights.

    Raises ModelError where its forward looks at numbers.
    """
    rows, layers = num_rows(call), {name: skeleton.get_submodule(name) for name in targets}
    blocks = {target.block: skeleton.get_submodule(target.block) for target in targets.values()}
    counter = FlopCounterMode(display=False)
    parameter = next(skeleton.parameters(), None)
    dtype = None if parameter is None else parameter.dtype  # calls may be in another
    try:
        with (
            counting_tokens(layers) as counts,
            counter,
            _counting_blocks(blocks, counter) as costs,
        ):
            run_call(skeleton, call.map(partial(_without_data, dtype)))
    except Exception as error:  # a class raises what it likes where it wants to see numbers
        raise ModelError(
            f"{type(skeleton).__name__} cannot run without numbers ({error!r}), so what updating "
            "takes is not known before"
        ) from None
    num_tokens = {name: sum(tokens) / rows for name, tokens in counts.items()}
    by_block = {
        path: BlockCost(sum(a for a, _ in runs) / rows, max((b for _, b in runs), default=0) / rows)
        for path, runs in costs.items()
    }
    return RowCost(counter.get_total_flops() / rows, num_tokens, by_block)


@contextmanager
def _counting_blocks(
    blocks: Mapping[str, nn.Module], counter: FlopCounterMode
) -> Iterator[dict[str, list[tuple[int, int]]]]:
    """By block: for each of its runs, its operations and the numbers that it gives."""
    costs: dict[str, list[tuple[int, int]]] = {path: [] for path in blocks}
    begun: list[int] = []

    def begin(*_: Any) -> None:
        begun.append(counter.get_total_flops())

    def end(path: str) -> Any:
        def hook(_block: nn.Module, _args: Any, output: Any) -> None:
            num_operations = counter.get_total_flops() - begun.pop()
            given = [leaf for leaf in Call((output,)).leaves() if isinstance(leaf, Tensor)]
            costs[path].append((num_operations, sum(leaf.numel() for leaf in given)))

        return hook

    with ExitStack() as stack:
        for path, block in blocks.items():
            stack.callback(block.register_forward_pre_hook(begin).remove)
            stack.callback(block.register_forward_hook(end(path)).remove)
        yield costs


def _without_data(dtype: torch.dtype | None, leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.to("meta", dtype if leaf.is_floating_point() else None)
