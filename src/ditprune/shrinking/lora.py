"""How is a LoRA of a base cut to fit the shrunk base? By rows of B, and columns of A.

A LoRA adds B A to the weight of a layer. Where the layer has lost rows, so does B; where it has
lost columns, so does A; what it adds to the rest is the same as before. Names are those of PEFT
and diffusers: `transformer.<layer>.lora_A.weight`, or `<layer>.lora.down.weight`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.shrunk.form import new_name
from ditprune.errors import ModelError, OutputError
from ditprune.shrinking.like import Like, read_like
from ditprune.writing.files import check_file
from ditprune.writing.json_file import parse_json
from ditprune.writing.tensors_file import load_tensors, save_tensors

SUFFIX = ".safetensors"
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+?)\."
    r"(?:(?P<part>lora_A|lora_B|lora[._]down|lora[._]up)(?:\.\w+)?\.(?P<leaf>weight|bias)|alpha)"
)
_READS, _GIVES = ("lora_A", "down"), ("lora_B", "up")
_KOHYA = re.compile(r"lora_(unet|te\d?|transformer|prior)_")
_BESIDE = re.compile(r"text_encoder(_\d+)?\.")  # of a pipeline, no denoiser's
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class ShrunkLora:
    """What became of a LoRA.

    Args:
        num_layers: that it lies on, in the denoiser.
        cut: those of them whose matrices became smaller.
        left_out: those of them that went with their blocks.
    """

    num_layers: int
    cut: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Pair:
    """The tensors of a LoRA on one layer, by their names in its file; and the layer's name there.

    Args:
        down: by name, matrices [r, C_in]. up: [C_out, r]. bias: [C_out].
        rest: what stays as it is.
    """

    named: str
    down: dict[str, Tensor] = field(default_factory=dict)
    up: dict[str, Tensor] = field(default_factory=dict)
    bias: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)


def shrink_lora(file: Path, out: Path, like: Path, overwrite: bool = False) -> ShrunkLora:
    """Write a LoRA of a base that fits the shrunk base.

    Args:
        like: the folder of the shrunk base.

    Raises DitpruneError, with `out` as it was.
    """
    if file.suffix != SUFFIX or out.suffix != SUFFIX:
        wrong = file if file.suffix != SUFFIX else out
        raise OutputError(
            f"{wrong}: a LoRA is read from and written to *{SUFFIX}; name such a file"
        )
    check_file(out, overwrite)
    if out.exists() and file.exists() and out.samefile(file):
        raise OutputError(f"{out}: is the LoRA itself; choose another name")
    likes = {name: read_like(folder) for name, folder in locate(str(like)).denoisers.items()}
    tensors, metadata = load_tensors(file)
    pairs, smaller = _pairs(file, tensors, likes)
    cut: list[str] = []
    left_out: list[str] = []
    for (component, layer), pair in pairs.items():
        fitting = _cut(file, likes[component], layer, pair)
        if fitting is None:
            left_out.append(layer)
            continue
        smaller |= fitting[0]
        cut += [layer] if fitting[1] else []
    if len(left_out) == len(pairs):
        raise ModelError(f"{file}: nothing of it is left, since all of its blocks went from {like}")
    save_tensors(smaller, _renamed(metadata, likes) if left_out else metadata, out)
    return ShrunkLora(len(pairs), tuple(cut), tuple(left_out))


def _pairs(
    file: Path, tensors: Mapping[str, Tensor], likes: Mapping[str, Like]
) -> tuple[dict[tuple[str, str], _Pair], dict[str, Tensor]]:
    """By denoiser and layer, what lies on it; and what lies on no denoiser. Raises ModelError."""
    pairs: dict[tuple[str, str], _Pair] = {}
    beside: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if _BESIDE.match(key):
            beside[key] = tensor
            continue
        found_in = _KEY.fullmatch(key)
        if found_in is None or _KOHYA.match(key):
            raise ModelError(_unknown(file, key))
        place = _place(found_in["layer"], likes)
        if place is None:
            raise ModelError(
                f"{file}: {found_in['layer']} is no layer of the base; the LoRA was made for "
                "another model; pass --like the folder that was shrunk from its model"
            )
        pair = pairs.setdefault(place, _Pair(found_in["layer"]))
        part, leaf = found_in["part"] or "", found_in["leaf"]
        if part.endswith(_GIVES):
            (pair.up if leaf == "weight" else pair.bias)[key] = tensor
        elif part.endswith(_READS) and leaf == "weight":
            pair.down[key] = tensor
        else:
            pair.rest[key] = tensor
    if not pairs:
        raise ModelError(f"{file}: holds no LoRA of a denoiser; expected *.lora_A.weight in it")
    return pairs, beside


def _unknown(file: Path, key: str) -> str:
    if _KOHYA.match(key):
        return (
            f"{file}: {key} is named as kohya's scripts do; load it with pipe.load_lora_weights "
            "and save it with pipe.transformer.save_lora_adapter first"
        )
    return (
        f"{file}: {key} is no part of a plain LoRA (DoRA, LoHa and others cannot be cut); merge it "
        "into the base, and shrink that with --like"
    )


def _place(layer: str, likes: Mapping[str, Like]) -> tuple[str, str] | None:
    """Which denoiser a name of a layer means, and the layer; None where there is no such layer."""
    component, _, rest = layer.partition(".")
    alone = next(iter(likes)) if len(likes) == 1 else ""
    known = component if component in likes else alone
    for name, path in ((alone, layer), (known, rest)):
        if name and (f"{path}.weight" in likes[name].shapes or _lowered(path, likes[name])):
            return name, path
    return None


def _lowered(layer: str, like: Like) -> str | None:
    """The layer of lower rank that a layer is, or is a part of."""
    names = (layer, layer.rpartition(".")[0])
    return next((name for name in names if name in like.ranks), None)


def _cut(file: Path, like: Like, layer: str, pair: _Pair) -> tuple[dict[str, Tensor], bool] | None:
    """What fits of a LoRA on a layer, by its new names, and whether it is smaller.

    None where the layer went with its block. Raises ModelError.
    """
    name = new_name(layer, like.blocks)
    if name is None:
        return None
    lowered = _lowered(layer, like)
    if lowered is not None:
        raise ModelError(
            f"{file}: lies on {layer}, and {lowered} has become two layers of rank "
            f"{like.ranks[lowered]}; merge the LoRA into the base (pipe.fuse_lora()) and shrink "
            "that with --like, or shrink the base with --modulation none"
        )
    shape = like.shapes[f"{layer}.weight"]
    _check(file, layer, pair, shape)
    stay = like.cut.stay(f"{layer}.weight", shape)
    smaller = dict(pair.rest)
    for dim, tensors in ((1, pair.down), (0, pair.up), (0, pair.bias)):
        for key, tensor in tensors.items():
            smaller[key] = tensor.index_select(dim, stay[dim]) if dim in stay else tensor
    named = f"{pair.named.removesuffix(layer)}{name}"
    return {key.replace(pair.named, named, 1): t for key, t in smaller.items()}, bool(stay)


def _check(file: Path, layer: str, pair: _Pair, shape: tuple[int, ...]) -> None:
    """Raise ModelError where a LoRA does not fit a weight of this shape."""
    if len(pair.down) != 1 or len(pair.up) != 1:
        raise ModelError(
            f"{file}: {len(pair.down)} A and {len(pair.up)} B on {layer}; expected one of each: "
            "save each adapter to a file of its own"
        )
    (down,), (up,) = pair.down.values(), pair.up.values()
    is_pair = min(down.ndim, up.ndim, len(shape)) > 1 and down.shape[0] == up.shape[1]
    is_bias = all(tuple(bias.shape) == (shape[0],) for bias in pair.bias.values())
    if not (is_pair and is_bias and (up.shape[0], down.shape[1]) == (shape[0], shape[1])):
        raise ModelError(
            f"{file}: A is {list(down.shape)} and B is {list(up.shape)} on {layer}, whose weight "
            f"is {list(shape)} in the base; the LoRA was made for another model"
        )


def _renamed(metadata: Mapping[str, str], likes: Mapping[str, Like]) -> dict[str, str]:
    """The words of a LoRA's file, with the names that layers have once blocks have gone."""
    blocks = {path: stay for like in likes.values() for path, stay in like.blocks.items()}

    def renamed(value: Any) -> Any:
        if isinstance(value, str):
            return new_name(value, blocks)
        if isinstance(value, list):
            return [new for item in value if (new := renamed(item)) is not None]
        if isinstance(value, dict):
            names = {key: new_name(key, blocks) for key in value}
            return {new: renamed(value[key]) for key, new in names.items() if new is not None}
        return value

    if _METADATA not in metadata:
        return dict(metadata)
    return {**metadata, _METADATA: json.dumps(renamed(parse_json(metadata[_METADATA])))}
