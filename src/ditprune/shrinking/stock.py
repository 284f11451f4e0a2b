"""How is a shrunk folder an ordinary one? Its config alone says what it is.

Such a folder loads wherever its class does, without ditprune. So blocks go where a config can say
which stay, and neurons where it says how wide MLPs are: the same in every block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ditprune.checkpoints.shrunk.form import Form, marked_form, renamed
from ditprune.errors import ModelError, RecipeError
from ditprune.shrinking.block_config import Stay, built, config_without, shapes_of, with_changes
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.units import HEADS, NEURONS, Cut, UnitGroup
from ditprune.shrinking.width_keys import Config, WidthKey, width_key
from ditprune.targets.blocks import find_blocks

BLOCKS = "blocks"


@dataclass(frozen=True)
class StockWidth:
    """The MLPs that are as wide as a config says.

    Args:
        groups: their names; in a folder without a form all are of one width.
        width: their neurons, now.
        step: their width stays a multiple of this.
    """

    key: WidthKey
    groups: tuple[str, ...]
    width: int
    channels: int
    step: int


def stock_parts(
    class_name: str, parts: Sequence[str] | None = None, modulation: float | str | None = None
) -> tuple[str, ...]:
    """What goes where an ordinary folder is written: what was asked for, or all that can.

    Raises RecipeError for parts, or a rank of modulation, that no config says.
    """
    has_width = width_key(class_name) is not None
    if modulation not in (None, "none"):
        raise RecipeError(
            f"--modulation {modulation}: an ordinary folder has no layers of lower rank; leave it "
            "out, or write --layout free"
        )
    if parts is None:
        return (BLOCKS, NEURONS) if has_width else (BLOCKS,)
    if HEADS in parts:
        raise RecipeError(
            "--parts heads: the config of an ordinary folder says one number of heads for all "
            "blocks, and its norms and projections follow; leave heads out, or write --layout free"
        )
    if NEURONS in parts and not has_width:
        raise RecipeError(
            f"--parts neurons: the config of {class_name} does not say how wide its MLPs are; pass "
            "--parts blocks, or write --layout free"
        )
    return tuple(parts)


def find_width(denoiser: nn.Module, blocks: Sequence[str] | None = None) -> StockWidth | None:
    """The MLPs in these blocks whose width the config says; None where it says none.

    That is tried: the class is built narrower, and nothing else may change its shape.

    Args:
        denoiser: as its class makes it, on the meta device or with values.
        blocks: those that are found, unless given.
    """
    key, config = width_key(type(denoiser).__name__), getattr(denoiser, "config", None)
    if key is None or config is None or marked_form(denoiser) is not None:
        return None
    before = built(type(denoiser), config)
    groups = _mlps(before, blocks)
    sizes = Counter((group.num_units, _channels(before, group)) for group in groups.values())
    for (width, channels), _ in sizes.most_common():
        step = key.step(config, channels)
        if width <= step:
            continue
        changed = _with_width(config, key, (width - 1) // step * step, channels)
        followers = _followers(before, built(type(denoiser), changed), groups)
        if followers:
            return StockWidth(key, followers, width, channels, step)
    return None


def stock_config(
    denoiser_class: type[nn.Module], config: Config, stay: Stay | None = None,
    width: int | None = None, blocks: Sequence[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The config that makes the denoiser with fewer blocks and narrower MLPs by itself.

    Args:
        config: of the denoiser as it is.
        stay: by the path of a list, the blocks that stay, ascending; all of those not named.
        width: of the MLPs that `find_width` names; all of them stay as wide without it.
        blocks: those that are found, unless given.

    Raises ModelError where no config makes it.
    """
    before = built(denoiser_class, config)
    changed: dict[str, Any] | None = dict(config)
    if stay:
        changed = config_without(denoiser_class, config, stay)
    if changed is None:
        raise ModelError(
            f"{denoiser_class.__name__}: no config says which blocks stay ({_told(stay)}); let "
            "others go, or write --layout free"
        )
    shapes = shapes_of(before)
    if width is not None:
        known = find_width(before, blocks)
        if known is None or width % known.step or not 0 < width <= known.width:
            raise ModelError(_no_width(denoiser_class, width, known))
        changed = _with_width(changed, known.key, width, known.channels)
        groups = _mlps(before, blocks)
        cut = Cut(groups, {name: range(width) for name in known.groups})
        shapes = {name: cut.shape(name, shape) for name, shape in shapes.items()}
    check_rebuilds(denoiser_class, changed, renamed(shapes, Form(blocks=stay or {})))
    return changed


def check_rebuilds(
    denoiser_class: type[nn.Module], config: Config, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Raise ModelError where a config alone makes another denoiser than tensors of these shapes.

    Args:
        shapes: of all tensors that are written, by name.
    """
    made = shapes_of(built(denoiser_class, config))
    for name in dict.fromkeys([*shapes, *made]):
        mine, theirs = shapes.get(name), made.get(name)
        if mine is None or theirs is None or tuple(mine) != theirs:
            raise ModelError(
                f"{name}: is {_said(mine)} in what is written, and {_said(theirs)} in the "
                f"{denoiser_class.__name__} that its config makes; write --layout free"
            )


def _mlps(denoiser: nn.Module, blocks: Sequence[str] | None) -> dict[str, UnitGroup]:
    if blocks is None:
        blocks = [block.path for block in find_blocks(denoiser) if not block.auxiliary]
    groups, _ = find_groups(denoiser, blocks)
    return {name: group for name, group in groups.items() if group.kind == NEURONS}


def _channels(denoiser: nn.Module, group: UnitGroup) -> int:
    return denoiser.get_parameter(f"{group.consumers[0].layer}.weight").shape[0]


def _with_width(config: Config, key: WidthKey, width: int, channels: int) -> dict[str, Any]:
    value, before = key.value(width, channels), config.get(key.key)
    same = [other for other in key.also if other in config and config[other] == before]
    return with_changes(config, dict.fromkeys((key.key, *same), value))


def _followers(
    before: nn.Module, after: nn.Module, groups: Mapping[str, UnitGroup]
) -> tuple[str, ...]:
    """The groups that are narrower afterwards; none where something else has changed, too."""
    old, new = shapes_of(before), shapes_of(after)
    weights = {name: f"{group.consumers[0].layer}.weight" for name, group in groups.items()}
    less = {name: old[weight][1] - new[weight][1] for name, weight in weights.items()}
    stay = {name: range(groups[name].num_units - count) for name, count in less.items() if count}
    cut = Cut(groups, stay)
    is_all = new == {name: cut.shape(name, shape) for name, shape in old.items()}
    return tuple(stay) if is_all else ()


def _no_width(denoiser_class: type[nn.Module], width: int, known: StockWidth | None) -> str:
    name = denoiser_class.__name__
    if known is None:
        return f"{name}: its config says no width of its MLPs; leave neurons out of --parts"
    return (
        f"{name}: {known.key.key} makes no MLPs of {width} neurons; expected at most {known.width}"
        f" and a multiple of {known.step}"
    )


def _told(stay: Stay | None) -> str:
    return ", ".join(f"{len(places)} of {path}" for path, places in (stay or {}).items())


def _said(shape: Sequence[int] | None) -> str:
    return "missing" if shape is None else str(list(shape))
