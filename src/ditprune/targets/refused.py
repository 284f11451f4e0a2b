"""Which denoisers cannot be pruned as they are? Those with fused projections or sparse layers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ditprune.errors import ModelError
from ditprune.targets import exceptions
from ditprune.targets.lists import join


def refuse_fused(block: nn.Module, path: str) -> None:
    """Raises ModelError if a block calls a fused copy in place of its projections."""
    for name, leaf, attention in _copies(block):
        if not _is_left_behind(attention):
            parts = ", ".join(exceptions.FUSED_COPIES[leaf])
            raise ModelError(
                f"{join(path, name)}: {leaf} is a fused copy of {parts} and called in their place; "
                "call denoiser.unfuse_qkv_projections(), or prune before fusing"
            )


def left_behind(block: nn.Module) -> set[str]:
    """Paths in the block of fused copies that unfusing left behind; nothing calls them."""
    return {join(n, leaf) for n, leaf, attention in _copies(block) if _is_left_behind(attention)}


def _copies(block: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(path, leaf name of the copy, module) of each module that holds a copy and its originals."""
    for name, module in block.named_modules():
        for leaf, parts in exceptions.FUSED_COPIES.items():
            children = [getattr(module, child, None) for child in (leaf, *parts)]
            linears = [child for child in children if isinstance(child, nn.Linear)]
            if len(linears) < len(children):
                continue
            copy, *originals = linears
            is_sum = copy.out_features == sum(linear.out_features for linear in originals)
            if is_sum and {linear.in_features for linear in originals} == {copy.in_features}:
                yield name, leaf, module


def _is_left_behind(attention: nn.Module) -> bool:
    """Whether the module calls its projections again, and not the copy.

    Classes that define their own unfusing delete the copy. diffusers' older attention class keeps
    it and only takes a processor whose name does not contain Fused.
    """
    if hasattr(attention, "unfuse_projections"):
        return False
    processor = getattr(attention, "processor", None)
    return processor is not None and "Fused" not in type(processor).__name__


def refuse_sparse(denoiser: nn.Module) -> None:
    """Raises ModelError if layers of a denoiser were swapped for sparse ones."""
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
