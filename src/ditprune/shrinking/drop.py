"""Which blocks may go, and how do they?

The first and the last block of a list stay, and those that take or give what no block beside them
does. Whether a block may go is tried on a call: without it the denoiser predicts what it predicts
with a block in its place that adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.shrunk.build import drop_blocks_
from ditprune.checkpoints.shrunk.form import Form, mark_, marked_form
from ditprune.denoiser.blockwise.find import Unlike
from ditprune.denoiser.replay import run_call, tensors_in
from ditprune.errors import is_out_of_memory, reason_of
from ditprune.shrinking.block_config import (
    Fewer,
    find_fewer,
    staying_beside,
    taken_alone,
    with_changes,
)
from ditprune.shrinking.checks import TOLERANCE, UNREACHED, share_apart
from ditprune.shrinking.identity import adding_nothing, passes_on, watching
from ditprune.shrinking.twins import exactly

Reasons = dict[str, str]


def droppable(denoiser: nn.Module, blocks: Sequence[str]) -> tuple[list[str], Reasons]:
    """The blocks that may go by their structure, and why each of the others stays.

    It works on the meta device; `check_drops` tries on a call those that may go.
    """
    alone = taken_alone(denoiser)
    reasons = {path: _why_it_stays(denoiser, path, alone) for path in blocks}
    return (
        [path for path in blocks if not reasons[path]],
        {path: reason for path, reason in reasons.items() if reason},
    )


def staying(denoiser: nn.Module, gone: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """By list, the places of the blocks that stay where these go, and of what belongs to blocks."""
    stay: dict[str, tuple[int, ...]] = {}
    for path in dict.fromkeys(path.rpartition(".")[0] for path in gone):
        count = len(list(denoiser.get_submodule(path).children()))
        stay[path] = tuple(place for place in range(count) if f"{path}.{place}" not in gone)
    return {**stay, **staying_beside(denoiser, stay)}


def check_drops(
    denoiser: nn.Module, call: Call, blocks: Sequence[str]
) -> tuple[list[str], Reasons]:
    """Those of these blocks that may go, tried on a call, and why each of the others may not.

    All of them are tried together, then every second; only where that fails are they tried list by
    list, and then alone. So try with `why_not` those that are chosen, once they are.
    """
    if not _why_not_all(denoiser, call, blocks):
        return list(blocks), {}
    lists: dict[str, list[str]] = {}
    for path in blocks:
        lists.setdefault(path.rpartition(".")[0], []).append(path)
    reasons = {
        path: reason
        for paths in lists.values()
        for path, reason in _why_each_stays(denoiser, call, paths).items()
    }
    return (
        [path for path in blocks if not reasons[path]],
        {path: reason for path, reason in reasons.items() if reason},
    )


def _why_each_stays(denoiser: nn.Module, call: Call, paths: Sequence[str]) -> Reasons:
    """By block of a list, why it may not go; a list of which neither end may go stays."""
    if not _why_not_all(denoiser, call, paths):
        return dict.fromkeys(paths, "")
    ends = {path: why_not(denoiser, call, [path]) for path in (paths[0], paths[-1])}
    if all(ends.values()):
        return {path: ends.get(path, ends[paths[0]]) for path in paths}
    return {path: ends[path] if path in ends else why_not(denoiser, call, [path]) for path in paths}


def _why_not_all(denoiser: nn.Module, call: Call, paths: Sequence[str]) -> str:
    patterns = [pattern for pattern in (paths, paths[::2]) if pattern]
    return next(filter(None, (why_not(denoiser, call, pattern) for pattern in patterns)), "")


def why_not(denoiser: nn.Module, call: Call, gone: Sequence[str]) -> str:
    """Why these blocks may not go together, in a few words; empty where they may.

    The denoiser runs three times, and is as before afterwards.
    """
    shapes: dict[str, Any] = {}

    def see(path: str, got: Call, output: Any) -> None:
        shapes.setdefault(path, passes_on(output, got))

    with exactly(denoiser), watching(denoiser, gone, see):
        run_call(denoiser, call.copied())
    for path in gone:
        if path not in shapes:
            return UNREACHED
        if isinstance(shapes[path], Unlike):
            return f"it {shapes[path]}"
    try:
        with exactly(denoiser), adding_nothing(denoiser, shapes):
            expected = _floating(run_call(denoiser, call.copied()))
        with without_blocks(denoiser, staying(denoiser, gone)), exactly(denoiser):
            got = _floating(run_call(denoiser, call.copied()))
    except Exception as error:  # a forward raises what it likes
        if is_out_of_memory(error):
            raise
        return f"without it the denoiser does not run ({reason_of(error):.120})"
    return _difference(expected, got)


def drop_(denoiser: nn.Module, stay: Mapping[str, Sequence[int]]) -> None:
    """Take blocks out of a denoiser in memory, with its config and what it says of its blocks.

    Where a config can say which blocks stay, its config does, and a denoiser as its class makes it
    stays one; else the form in it does.

    Args:
        stay: by the path of a list, the blocks that stay, ascending.
    """
    marked, fewer = marked_form(denoiser), _fewer(denoiser, stay)
    drop_blocks_(denoiser, stay)
    if fewer is None:
        mark_(denoiser, (marked or Form()).then(Form(blocks=stay)))
        return
    config: Any = denoiser._internal_dict
    denoiser._internal_dict = type(config)(with_changes(config, fewer.changes))
    vars(denoiser).update(fewer.attributes)
    if marked is not None:
        mark_(denoiser, marked.without(stay))


def config_after(denoiser: nn.Module, stay: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    """The config of a denoiser without blocks; None where its form has to say which stay.

    Args:
        denoiser: before, on the meta device or with values.
        stay: by the path of a list, the blocks that stay, ascending.
    """
    fewer = _fewer(denoiser, stay)
    config: Any = getattr(denoiser, "_internal_dict", None)
    return None if fewer is None else with_changes(config, fewer.changes)


@contextmanager
def without_blocks(denoiser: nn.Module, stay: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """The denoiser is without blocks inside the block, and as before after it."""
    lists = {path: dict(denoiser.get_submodule(path)._modules) for path in stay}
    said = dict(vars(denoiser))
    drop_(denoiser, stay)
    try:
        yield
    finally:
        for path, items in lists.items():
            denoiser.get_submodule(path)._modules = items
        vars(denoiser).update(said)


def _fewer(denoiser: nn.Module, stay: Mapping[str, Sequence[int]]) -> Fewer | None:
    config, marked = getattr(denoiser, "_internal_dict", None), marked_form(denoiser)
    if config is None or (marked is not None and marked.blocks):  # places of another list
        return None
    return find_fewer(type(denoiser), config, stay)


def _why_it_stays(denoiser: nn.Module, path: str, alone: Mapping[str, str]) -> str:
    parent, _, name = path.rpartition(".")
    siblings = denoiser.get_submodule(parent) if parent else None
    if not isinstance(siblings, (nn.ModuleList, nn.Sequential)) or not name.isdecimal():
        return "it is in no list"
    items, place = list(siblings), int(name)
    if place in (0, len(items) - 1):
        return "the first and the last of a list stay"
    if path in alone:
        return f"it takes what no other block takes ({alone[path]} in the config)"
    if _form_of(items[place]) not in (_form_of(items[place - 1]), _form_of(items[place + 1])):
        return "it is unlike the blocks beside it"
    return ""


def _form_of(block: nn.Module) -> tuple[type, list[tuple[str, tuple[int, ...]]]]:
    return type(block), [(name, tuple(p.shape)) for name, p in block.named_parameters()]


def _floating(output: Any) -> list[Tensor]:
    return [tensor for _, tensor in tensors_in(output) if tensor.is_floating_point()]


def _difference(expected: Sequence[Tensor], got: Sequence[Tensor]) -> str:
    """How outputs differ; empty if they are the same up to rounding."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
        return "without it the denoiser runs in another way"
    for before, after in zip(expected, got, strict=True):
        share = share_apart(before, after)
        if share is None:
            return "the outputs are not finite in this call"
        if not share <= TOLERANCE:
            return (
                "without it the denoiser gives something else than with a block in its place that "
                f"adds nothing (by {share:.1e} of its largest output)"
            )
    return ""
