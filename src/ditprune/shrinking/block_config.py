"""Which config makes the same denoiser with fewer blocks? Found by building its class.

The number under some key of the config counts a list of blocks: the list is shorter where the class
is built with less. What else says which block is which is in the tables below. A config counts only
if its class makes of it exactly the tensors that stay, so a wrong guess about a class is no harm.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ditprune.checkpoints.shrunk.form import KEY, MARK, Form, renamed
from ditprune.imports import without_collection

Stay = Mapping[str, Sequence[int]]
Shapes = dict[str, tuple[int, ...]]

_COUNTS = re.compile(r"layers|blocks|depth", re.IGNORECASE)
_DEFAULTS = "_use_default_values"
_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class _Places:
    """A key whose value says something of the blocks of a list by their places.

    Args:
        change: gives what its value becomes, from what it is and which places of how many stay.
        is_paired: whether a block whose place it holds takes what no other block takes.
    """

    key: str
    blocks: str
    change: Callable[[Any, Sequence[int], int], Any]
    is_paired: bool = False


def _renumbered(places: Any, stay: Sequence[int], _count: int) -> Any:
    """Of a list of places: those that stay, counted anew."""
    new = {old: number for number, old in enumerate(stay)}
    return type(places)(new[place] for place in places if place in new)


def _items(items: Any, stay: Sequence[int], count: int) -> Any:
    """Of a list with an item for each block."""
    is_one_each = isinstance(items, (list, tuple)) and len(items) == count
    return type(items)(items[place] for place in stay) if is_one_each else items


def _first(number: Any, stay: Sequence[int], _count: int) -> Any:
    """Of how many blocks come first."""
    is_number = isinstance(number, int) and number >= 0  # all, where it is negative
    return sum(place < number for place in stay) if is_number else number


def _last(number: Any, stay: Sequence[int], count: int) -> Any:
    """Of how many blocks come last."""
    return sum(place >= count - number for place in stay)


def _kinds(kinds: Any, stay: Sequence[int], count: int) -> Any:
    """Of the kinds of attention in ACE-Step, which take turns where the config does not say."""
    turns = ["sliding_attention" if place % 2 == 0 else "full_attention" for place in range(count)]
    return _items(turns if kinds is None else kinds, stay, count)


def _of_text(layers: Any, stay: Sequence[int], count: int) -> Any:
    """Of the layers of a text encoder that blocks take, by the projections of each; the last of
    these is that of another encoder.
    """
    is_one_each = isinstance(layers, (list, tuple)) and len(layers) == count - 1
    return type(layers)(layers[p] for p in stay if p < len(layers)) if is_one_each else layers


# Lists with an item for each block of some lists, in their order, that goes with the block.
_BESIDE: dict[str, dict[str, tuple[str, ...]]] = {
    "HiDreamImageTransformer2DModel": {
        "caption_projection": ("double_stream_blocks", "single_stream_blocks"),
    },
}

# Of diffusers 0.42.1. ControlNets and face adapters count blocks in steps of a fixed length, which
# are not here: they cannot follow.
_PLACES: dict[str, tuple[_Places, ...]] = {
    "SD3Transformer2DModel": (_Places("dual_attention_layers", "transformer_blocks", _renumbered),),
    "WanVACETransformer3DModel": (_Places("vace_layers", "blocks", _renumbered, True),),
    "BriaFibo2Transformer2DModel": (_Places("injection_layer_ids", "layers", _renumbered, True),),
    "AceStepTransformer1DModel": (_Places("layer_types", "layers", _kinds),),
    "NucleusMoEImageTransformer2DModel": (
        _Places("capacity_factors", "transformer_blocks", _items),
    ),
    "EasyAnimateTransformer3DModel": (_Places("mmdit_layers", "transformer_blocks", _first),),
    "SanaWMTransformer3DModel": (_Places("chunk_plucker_post_attn_blocks", "blocks", _first),),
    "HiDreamImageTransformer2DModel": (_Places("llama_layers", "caption_projection", _of_text),),
    "MotifVideoTransformer3DModel": (
        _Places("num_decoder_layers", "single_transformer_blocks", _last),
    ),
}


@dataclass(frozen=True, eq=False)
class Fewer:
    """What says which blocks stay.

    Args:
        changes: in the config.
        attributes: numbers and lists of the denoiser itself that its constructor sets otherwise.
    """

    changes: dict[str, Any]
    attributes: dict[str, Any]


def config_without(
    denoiser_class: type[nn.Module], config: Mapping[str, Any], stay: Stay
) -> dict[str, Any] | None:
    """The config from which a class makes its denoiser with fewer blocks.

    Args:
        stay: by the path of a list, the blocks that stay, ascending.

    None where no config does: the class makes blocks of another kind, or one too many, where the
    lists are as long. A folder without these blocks then needs a `Form`.
    """
    fewer = find_fewer(denoiser_class, config, stay)
    return None if fewer is None else with_changes(config, fewer.changes)


def with_changes(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values; diffusers takes those that it calls defaults from the class."""
    defaults = config.get(_DEFAULTS)
    told = {} if defaults is None else {_DEFAULTS: [d for d in defaults if d not in changes]}
    return {**config, **changes, **told}


def find_fewer(
    denoiser_class: type[nn.Module], config: Mapping[str, Any], stay: Stay
) -> Fewer | None:
    """As `config_without`, with what the constructor says of itself."""
    plain = {key: value for key, value in config.items() if key not in (KEY, MARK, _DEFAULTS)}
    try:
        before = built(denoiser_class, plain)
        changed = _changed(denoiser_class, plain, before, stay)
        after = built(denoiser_class, changed)
    except Exception:  # a class raises what it likes for values that it does not know
        return None
    gone = Form(blocks=stay)
    if any(of(after) != renamed(of(before), gone) for of in (shapes_of, _classes)):
        return None
    old, new = vars(before), vars(after)
    attributes = {
        name: value
        for name, value in new.items()
        if not name.startswith("_") and _is_plain(value) and old.get(name) != value
    }
    return Fewer({k: v for k, v in changed.items() if v != plain[k]}, attributes)


def staying_beside(denoiser: nn.Module, stay: Stay) -> dict[str, tuple[int, ...]]:
    """Which items of other lists stay where these blocks do: those that belong to blocks go."""
    beside: dict[str, tuple[int, ...]] = {}
    for path, lists in _BESIDE.get(type(denoiser).__name__, {}).items():
        places: list[int] = []
        start = 0
        for blocks in lists:
            count = len(_list(denoiser, blocks))
            places += [start + place for place in stay.get(blocks, range(count))]
            start += count
        beside[path] = (*places, *range(start, len(_list(denoiser, path))))
    return beside


def taken_alone(denoiser: nn.Module) -> dict[str, str]:
    """By block, the key that gives it what no other block takes."""
    config = getattr(denoiser, "config", None) or {}
    return {
        f"{places.blocks}.{place}": places.key
        for places in _PLACES.get(type(denoiser).__name__, ())
        if places.is_paired
        for place in config.get(places.key) or ()
    }


def built(denoiser_class: Any, config: Mapping[str, Any]) -> nn.Module:
    """The denoiser that a class of diffusers makes from a config, on the meta device."""
    with without_collection(), torch.device("meta"), _quiet():
        denoiser: nn.Module = denoiser_class.from_config(dict(config))
    return denoiser


def shapes_of(denoiser: nn.Module) -> Shapes:
    """Of every tensor that a folder holds."""
    return {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}


def _changed(
    denoiser_class: type[nn.Module], config: dict[str, Any], before: nn.Module, stay: Stay
) -> dict[str, Any]:
    counts = {path: len(_list(before, path)) for path in stay}
    fewer = {path: places for path, places in stay.items() if len(places) < counts[path]}
    keys = _counting(denoiser_class, config, before, fewer)
    changed = _moved(denoiser_class, config, fewer, counts)
    for path, key in keys.items():
        changed[key] = len(stay[path])
    return changed


def _counting(
    denoiser_class: type[nn.Module], config: dict[str, Any], before: nn.Module, paths: Stay
) -> dict[str, str]:
    """By list, the key that counts its blocks: the list is shorter if there is one less."""
    keys: dict[str, str] = {}
    counts = {path: len(_list(before, path)) for path in paths}
    for key, value in config.items():
        wanted = [path for path in paths if path not in keys and counts[path] == value]
        if not _COUNTS.search(key) or type(value) is not int or not wanted:
            continue
        less = {path: range(value - 1) for path in wanted}
        moved = _moved(denoiser_class, config, less, counts)
        try:
            smaller = built(denoiser_class, {**moved, key: value - 1})
        except Exception:  # it counts something else, of which there may not be less
            continue
        keys |= {path: key for path in wanted if len(_list(smaller, path)) == value - 1}
    return keys


def _moved(
    denoiser_class: type[nn.Module], config: dict[str, Any], stay: Stay, counts: Mapping[str, int]
) -> dict[str, Any]:
    moved = dict(config)
    for places in _PLACES.get(denoiser_class.__name__, ()):
        if places.blocks in stay and places.key in config:
            path = places.blocks
            moved[places.key] = places.change(config[places.key], stay[path], counts[path])
    return moved


def _list(denoiser: nn.Module, path: str) -> nn.ModuleList:
    items = denoiser.get_submodule(path)
    assert isinstance(items, (nn.ModuleList, nn.Sequential))
    return items  # type: ignore[return-value]


def _classes(denoiser: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in denoiser.named_modules() if name}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


@contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers has to say of a config is said where it is loaded."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
