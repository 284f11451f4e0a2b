"""Does a model compute the same when units are cut out as when their outputs are zero?

Tried on a call before anything is chosen or written: for each attention and MLP, some of its units
go, and the block must give what it gives when these are zeroed before their output projection.
What fails stays whole. So a wrong guess about a denoiser that nobody has seen costs no quality.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import hooked
from ditprune.denoiser.replay import evaluating, run_call, tensors_in
from ditprune.errors import ModelError, is_out_of_memory, reason_of
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.twins import exactly, in_float32, twin_of, widened, without_columns
from ditprune.shrinking.units import Cut, UnitGroup, Whole
from ditprune.shrinking.variants import attending_together, module_path, variants_of
from ditprune.targets.writable import no_values

TOLERANCE = 1e-5  # of the largest output
UNREACHED = "the call does not reach it"

Outputs = list[tuple[str, Tensor]]
Tried = tuple[dict[str, UnitGroup], list[Whole]]


def check_groups(denoiser: nn.Module, call: Call, groups: Mapping[str, UnitGroup]) -> Tried:
    """The groups whose units can go, and the others with the reason.

    The denoiser runs once; each block is tried with what it gets there. Where a block is never
    called itself, only its parts are, the whole denoiser is tried.
    """
    by_block: dict[str, dict[str, UnitGroup]] = {}
    for name, group in groups.items():
        by_block.setdefault(group.block, {})[name] = group
    tried: dict[str, Tried] = {}

    def see(path: str, block: nn.Module, got: Call) -> None:
        if path not in tried:
            tried[path] = try_block(block, path, got, by_block[path])

    with hooked({path: denoiser.get_submodule(path) for path in by_block}, see):
        run_call(denoiser, call.copied())
    uncalled = {path: some for path, some in by_block.items() if path not in tried}
    if uncalled:
        tried |= _try_inside(denoiser, call, uncalled)
    good = {name: group for path in by_block for name, group in tried[path][0].items()}
    return good, [whole for path in by_block for whole in tried[path][1]]


def _try_inside(
    denoiser: nn.Module, call: Call, by_block: Mapping[str, Mapping[str, UnitGroup]]
) -> dict[str, Tried]:
    """The same for blocks that are never called themselves, in the whole denoiser."""
    together = {name: group for groups in by_block.values() for name, group in groups.items()}
    failed = check_block(denoiser, "", call, together)
    return {
        path: _retried(denoiser, "", call, groups, {n: failed[n] for n in groups if n in failed})
        for path, groups in by_block.items()
    }


def try_block(block: nn.Module, path: str, got: Call, groups: Mapping[str, UnitGroup]) -> Tried:
    """The groups of a block whose units can go, and the others with the reason.

    The arguments are those of `check_block`.
    """
    return _retried(block, path, got, groups, check_block(block, path, got, groups))


def _retried(
    block: nn.Module, path: str, got: Call, groups: Mapping[str, UnitGroup],
    reasons: Mapping[str, str],
) -> Tried:  # fmt: skip
    """What fails is tried in its other forms, then attentions of equal heads as one."""
    good = {name: group for name, group in groups.items() if name not in reasons}
    failed = {n: group for n, group in groups.items() if reasons.get(n, UNREACHED) != UNREACHED}
    for name, group in failed.items():
        others = variants_of(group, block.get_submodule(_below(module_path(group), path)))
        works = (other for other in others if not check_block(block, path, got, {name: other}))
        if (other := next(works, None)) is not None:
            good[name] = other
    both = attending_together([group for name, group in failed.items() if name not in good])
    is_joint = both is not None and not check_block(block, path, got, {both.name: both})
    gone = set(good)
    if both is not None and is_joint:
        good[both.name] = both
        gone |= {name for name in failed if failed[name].kind == both.kind}
    return good, [
        Whole(name, groups[name].kind, groups[name].block, reason)
        for name, reason in reasons.items()
        if name not in gone
    ]


def check_block(
    block: nn.Module, path: str, got: Call, groups: Mapping[str, UnitGroup]
) -> dict[str, str]:
    """Why units of these groups cannot go, by group; those that can are left out.

    All are tried together, and one by one where that fails: two runs of the block at best.

    Args:
        block: with its weights; it stays as it is.
        path: its path in the denoiser.
        got: what it gets in a call.

    Raises ModelError where a weight is not there.
    """
    if not groups:
        return {}
    for name, layer in block.named_modules(prefix=path):
        if reason := no_values(layer):
            raise ModelError(f"{name}: {reason}")
    try:
        wide, inputs = in_float32(block), got.map(widened)
    except Exception as error:  # a module builds itself as it likes
        return dict.fromkeys(groups, _does_not_run(error))
    together, idle = _attempt(wide, path, inputs, [*groups.values()])
    reached = {name: group for name, group in groups.items() if name not in idle}
    if idle and reached:
        together, _ = _attempt(wide, path, inputs, [*reached.values()])
    reasons = dict.fromkeys(idle, UNREACHED)
    for name, group in reached.items() if together else ():
        reasons[name], _ = _attempt(wide, path, inputs, [group])
    return {name: reason for name, reason in reasons.items() if reason}


def _attempt(
    block: nn.Module, path: str, got: Call, groups: Sequence[UnitGroup]
) -> tuple[str, list[str]]:
    """Why units of these groups cannot go, empty if they can; and which the call does not reach."""
    stay = {group.name: _some(group) for group in groups}
    columns: dict[str, list[Tensor]] = {}
    for group in groups:
        for consumer in group.consumers:
            gone = consumer.columns[group.removed(stay[group.name])].reshape(-1)
            columns.setdefault(_below(consumer.layer, path), []).append(gone)
    try:
        zeros = {name: torch.cat(places) for name, places in columns.items()}
        expected = _run(without_columns(block, zeros), got, columns)
        idle = [group.name for group in groups if not _is_reached(group, path, expected)]
        if idle:
            return UNREACHED, idle
        cut = twin_of(block)
        cut_(cut, Cut({group.name: group for group in groups}, stay), path)
        return _difference(expected, _run(cut, got, columns)), []
    except Exception as error:  # a forward raises what it likes
        return _does_not_run(error), []


def _does_not_run(error: Exception) -> str:
    if is_out_of_memory(error):
        raise error
    return f"without some of its units it does not run ({reason_of(error):.120})"


def _is_reached(group: UnitGroup, path: str, outputs: Outputs) -> bool:
    called = {name for name, _ in outputs}
    return any(_below(consumer.layer, path) in called for consumer in group.consumers)


def _below(path: str, prefix: str) -> str:
    """The path below a module, empty for the module itself."""
    return f"{path}.".removeprefix(f"{prefix}." if prefix else "").removesuffix(".")


def _some(group: UnitGroup) -> list[int]:
    """A random half of the units, one at least; the same in every run, others in every group."""
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    order = torch.randperm(group.num_units, generator=generator)
    return sorted(order[: max(1, group.num_units // 2)].tolist())


def _run(block: nn.Module, got: Call, layers: Iterable[str]) -> Outputs:
    """What a block gives, and under their names what some of its layers give."""
    with _outputs_of(block, layers) as given, evaluating(block), exactly(block):
        call = got.copied()
        outputs = tensors_in(block(*call.args, **call.kwargs))
    return [*given, *(("", tensor) for _, tensor in outputs if tensor.is_floating_point())]


@contextmanager
def _outputs_of(block: nn.Module, layers: Iterable[str]) -> Iterator[Outputs]:
    given: Outputs = []
    for name in layers:
        block.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: given.append((name, output.detach().clone()))
        )
    yield given


def _difference(expected: Outputs, got: Outputs) -> str:
    """How outputs differ; empty if they are the same up to rounding."""
    if len(expected) != len(got):
        return "without some of its units it runs in another way"
    for (_, before), (_, after) in zip(expected, got, strict=True):
        if before.shape != after.shape:
            return "without some of its units its output has another shape"
        share = share_apart(before, after)
        if share is None:
            return "its outputs are not finite in this call"
        if not share <= TOLERANCE:
            return (
                "without some of its units it gives something else than with their outputs zeroed "
                f"(by {share:.1e} of its largest output)"
            )
    return ""


def share_apart(before: Tensor, after: Tensor) -> float | None:
    """The largest difference over the largest number of `before`; None where that is not finite."""
    if not before.numel():
        return 0.0
    largest = before.abs().max()
    if not largest.isfinite():
        return None
    return ((after - before).abs().max() / largest.clamp_min(1e-30)).item()
