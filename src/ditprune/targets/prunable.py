"""What is prunable inside a block, and why the rest is not, in a person's words."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ditprune.targets import exceptions
from ditprune.targets.matrix import kind_of, matrix_shape
from ditprune.targets.refused import left_behind

EMBEDDER = "embeds the timestep or the label; original models keep it outside the blocks"
MULTIHEAD = (
    "nn.MultiheadAttention keeps query, key and value in a raw parameter and never calls its "
    "output Linear"
)
LEFT_BEHIND = "a fused copy that unfusing left behind; nothing calls it"
PER_HEAD = "one output for each head or expert: too few rows to compare"


def prunable(block: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(path in the block, layer, kind) of every layer to prune."""
    dense = dense_parts(block)
    for name, layer in block.named_modules():
        kind = kind_of(layer)
        if kind is None or is_within(name, dense) or is_per_head(name, layer):
            continue
        if layer.get_parameter("weight").numel():
            yield name, layer, kind


def dense_parts(block: nn.Module) -> dict[str, str]:
    """Submodules that stay dense as a whole, by path in the block, each with its reason."""
    parts: dict[str, str] = {}
    copies = left_behind(block)
    for name, module in block.named_modules():
        if not name or is_within(name, parts):
            continue
        if isinstance(module, nn.MultiheadAttention):
            parts[name] = MULTIHEAD
        elif name in copies:
            parts[name] = LEFT_BEHIND
        elif not kind_of(module) and exceptions.EMBEDDER_CLASS.search(type(module).__name__):
            parts[name] = EMBEDDER
    return parts


def is_within(name: str, parts: dict[str, str]) -> bool:
    """Whether a path is one of these parts or below one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def is_per_head(name: str, layer: nn.Module) -> bool:
    """Whether a matrix has one output for each head or expert, by its shape and leaf name."""
    num_out, num_in = matrix_shape(layer.get_parameter("weight").shape)
    few = num_out <= exceptions.FEW_OUTPUTS and num_out * exceptions.FEW_OUTPUTS_RATIO <= num_in
    leaf = name.rsplit(".", 1)[-1]
    if exceptions.ATTENTION_LINEAR.match(leaf):  # keys and values of few heads are narrow too
        return False
    is_gate = exceptions.GATE_LINEAR.match(leaf) is not None
    return few or (is_gate and num_out * exceptions.GATE_RATIO <= num_in)
