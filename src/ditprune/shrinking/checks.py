"""Does a model compute the same when units are cut out as when their outputs are zero?

Tried on a call before anything is chosen or written: for each attention and MLP, some of its units
go, and the block must give what it gives when these are zeroed before their output projection.
What fails stays whole. So a wrong guess about a denoiser that nobody has seen costs no quality.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import hooked
from ditprune.denoiser.replay import evaluating, run_call, tensors_in
from ditprune.errors import is_out_of_memory, reason_of
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.twins import exactly, in_float32, twin_of, widened, without_columns
from ditprune.shrinking.units import Cut, UnitGroup, Whole
from ditprune.shrinking.variants import attending_together, interleaved

TOLERANCE = 1e-5  # of the largest output
UNREACHED = "the call does not reach it"

Outputs = list[tuple[str, Tensor]]


def check_groups(
    denoiser: nn.Module, call: Call, groups: Mapping[str, UnitGroup]
) -> tuple[dict[str, UnitGroup], list[Whole]]:
    """The groups whose units can go, and the others with the reason.

    The denoiser runs once; each block is tried with what it gets there. Where a block is never
    called itself, only its parts are, the whole denoiser is tried.
    """
    by_block: dict[str, dict[str, UnitGroup]] = {}
    for name, group in groups.items():
        by_block.setdefault(group.block, {})[name] = group
    tried: dict[str, tuple[dict[str, UnitGroup], list[Whole]]] = {}

    def see(path: str, block: nn.Module, got: Call) -> None:
        if path not in tried:
            tried[path] = try_block(block, path, got, by_block[path])

    with hooked({path: denoiser.get_submodule(path) for path in by_block}, see):
        run_call(denoiser, call.copied())
    for path in by_block.keys() - tried.keys():
        tried[path] = try_block(denoiser, "", call, by_block[path])
    good = {name: group for path in by_block for name, group in tried[path][0].items()}
    return good, [whole for path in by_block for whole in tried[path][1]]


def try_block(
    block: nn.Module, path: str, got: Call, groups: Mapping[str, UnitGroup]
) -> tuple[dict[str, UnitGroup], list[Whole]]:
    """The groups of a block whose units can go, and the others with the reason.

    What fails is tried once more: with the rows of each unit side by side, then attentions of
    equal heads as one. The arguments are those of `check_block`.
    """
    reasons = check_block(block, path, got, groups)
    good = {name: group for name, group in groups.items() if name not in reasons}
    failed = {n: group for n, group in groups.items() if reasons.get(n, UNREACHED) != UNREACHED}
    others = {name: other for name, group in failed.items() if (other := interleaved(group))}
    still = check_block(block, path, got, others) if others else {}
    good |= {name: other for name, other in others.items() if name not in still}
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

    Args:
        block: with its weights; it stays as it is.
        path: its path in the denoiser.
        got: what it gets in a call.
    """
    wide, inputs = in_float32(block), got.map(widened)
    reasons = {name: _reason(wide, path, inputs, group) for name, group in groups.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(block: nn.Module, path: str, got: Call, group: UnitGroup) -> str:
    """Why units of a group cannot go; empty if they can."""
    stay = _some(group.num_units)
    consumers = {_below(c.layer, path): c.columns for c in group.consumers}
    removed = group.removed(stay)
    try:
        columns = {name: places[removed].reshape(-1) for name, places in consumers.items()}
        zeroed = _run(without_columns(block, columns), got, consumers)
        if not any(name for name, _ in zeroed):
            return UNREACHED
        cut = twin_of(block)
        cut_(cut, Cut({group.name: group}, {group.name: stay}), path)
        return _difference(zeroed, _run(cut, got, consumers))
    except Exception as error:  # a forward raises what it likes
        if is_out_of_memory(error):
            raise
        return f"without some of its units it does not run ({reason_of(error):.120})"


def _below(path: str, prefix: str) -> str:
    return path.removeprefix(f"{prefix}.") if prefix else path


def _some(num_units: int) -> list[int]:
    """A random half of the units, one at least; the same in every run."""
    order = torch.randperm(num_units, generator=torch.Generator().manual_seed(num_units))
    return sorted(order[: max(1, num_units // 2)].tolist())


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
        if not before.numel():
            continue
        largest = before.abs().max()
        if not largest.isfinite():
            return "its outputs are not finite in this call"
        share = ((after - before).abs().max() / largest.clamp_min(1e-30)).item()
        if not share <= TOLERANCE:
            return (
                "without some of its units it gives something else than with their outputs zeroed "
                f"(by {share:.1e} of its largest output)"
            )
    return ""
