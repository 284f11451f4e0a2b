"""Denoisers that cannot be pruned as they are: with fused projections, or running sparse."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ditprune.errors import ModelError
from ditprune.targets import exceptions
from ditprune.targets.blocks import join


def refuse_fused(block: nn.Module, path: str) -> None:
    """Raises ModelError where a block calls a fused copy in place of its projections."""
    for name, leaf, attention in _copies(block):
        if not _is_left_behind(attention):
            parts = ", ".join(exceptions.FUSED_COPIES[leaf])
            raise ModelError(
                f"{join(path, name)}: {leaf} is a fused copy of {parts} and called in their place; "
                "call denoiser.unfuse_qkv_projections(), or prune before fusing"
            )


def left_behind(block: nn.Module) -> set[str]:
    """Paths in the block of copies that unfusing has left there uncalled."""
    return {join(name, leaf) for name, leaf, one in _copies(block) if _is_left_behind(one)}


def _copies(block: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(path, leaf of the copy, the module) of each module with a copy and what it is a copy of."""
    for name, module in block.named_modules():
        for leaf, parts in exceptions.FUSED_COPIES.items():
            children = [getattr(module, one, None) for one in (leaf, *parts)]
            linears = [one for one in children if isinstance(one, nn.Linear)]
            if len(linears) < len(children):
                continue
            copy, *originals = linears
            is_sum = copy.out_features == sum(one.out_features for one in originals)
            if is_sum and {one.in_features for one in originals} == {copy.in_features}:
                yield name, leaf, module


def _is_left_behind(attention: nn.Module) -> bool:
    """Whether the projections are called again.

    Classes with an unfusing of their own delete the copy; diffusers' older attention class keeps
    it and only changes to a processor that is not called Fused….
    """
    if hasattr(attention, "unfuse_projections"):
        return False
    processor = getattr(attention, "processor", None)
    return processor is not None and "Fused" not in type(processor).__name__


def refuse_sparse(denoiser: nn.Module) -> None:
    """Raises ModelError where layers of a denoiser were swapped for sparse ones."""
    swapped = [
        name
        for name, module in denoiser.named_modules()
        if type(module).__name__ in exceptions.SPARSE_CLASSES
    ]
    if swapped:
        raise ModelError(
            f"{type(denoiser).__name__}: {len(swapped)} layers run sparse (first {swapped[0]}), "
            "and their weights are packed; call ditprune.runtime.desparsify_(denoiser) first, and "
            "sparsify_ again afterwards"
        )
