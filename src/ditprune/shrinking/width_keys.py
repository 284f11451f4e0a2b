"""Where does the config of a class say how wide its MLPs are?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class WidthKey:
    """The key of a config that says how wide all MLPs of a class are.

    Args:
        value: what it is for a width in MLPs of so many channels.
        step: of what the width is a multiple, by the config and the channels.
        also: keys whose value stays the same as its.
    """

    key: str
    value: Callable[[int, int], float]
    step: Callable[[Config, int], int] = lambda _config, _channels: 1
    also: tuple[str, ...] = ()


def _itself(width: int, _channels: int) -> float:
    return width


def _ratio(width: int, channels: int) -> float:
    """Of the width to the channels; constructors multiply them again, and round down."""
    exact = width / channels
    return exact if int(channels * exact) == width else (width + 0.5) / channels


def _of_channels(_config: Config, channels: int) -> int:
    return channels


def _of_lumina(config: Config, _channels: int) -> int:
    return int(config["multiple_of"])


# Of diffusers 0.42.1. Whether a key gives a width is tried by building the class.
_KEYS: dict[str, WidthKey] = {
    **dict.fromkeys(
        (
            "AnyFlowFARTransformer3DModel", "AnyFlowTransformer3DModel",
            "ChronoEditTransformer3DModel", "HeliosTransformer3DModel",
            "SkyReelsV2Transformer3DModel", "WanAnimate2Transformer3DModel",
            "WanAnimateTransformer3DModel", "WanTransformer3DModel", "WanVACETransformer3DModel",
        ),
        WidthKey("ffn_dim", _itself),
    ),
    **dict.fromkeys(
        (
            "AceStepTransformer1DModel", "Cosmos3OmniTransformer", "Ideogram4Transformer2DModel",
            "Krea2Transformer2DModel", "OmniGenTransformer2DModel", "UVit2DModel",
        ),
        WidthKey("intermediate_size", _itself),
    ),
    **dict.fromkeys(
        ("Kandinsky5Transformer3DModel", "Kandinsky6SRTransformer3DModel"),
        WidthKey("ff_dim", _itself),
    ),
    "Kandinsky6Transformer3DModel": WidthKey("ff_dim", _itself, also=("ff_dim_a",)),
    "ErnieImageTransformer2DModel": WidthKey("ffn_hidden_size", _itself),
    "MiniMaxMusic3Transformer1DModel": WidthKey("ff_inner_dim", _itself),
    "T5FilmDecoder": WidthKey("d_ff", _itself),
    **dict.fromkeys(
        (
            "CosmosTransformer3DModel", "Flux2Transformer2DModel", "Flux3Transformer2DModel",
            "HunyuanDiT2DModel", "HunyuanImageTransformer2DModel",
            "HunyuanVideo15Transformer3DModel", "HunyuanVideoFramepackTransformer3DModel",
            "HunyuanVideoTransformer3DModel", "MotifVideoTransformer3DModel",
            "PRXTransformer2DModel", "SanaTransformer2DModel", "SanaVideoTransformer3DModel",
            "SanaWMTransformer3DModel",
        ),
        WidthKey("mlp_ratio", _ratio),
    ),
    "QwenImage21Transformer2DModel": WidthKey(
        "mlp_ratio", lambda width, channels: width // channels, _of_channels
    ),
    "NucleusMoEImageTransformer2DModel": WidthKey(  # two thirds, rounded down to 128
        "mlp_ratio", lambda width, channels: (width + 0.5) * 1.5 / channels, lambda *_: 128
    ),
    "LuminaNextDiT2DModel": WidthKey(  # of eight thirds, rounded up
        "ffn_dim_multiplier", lambda width, channels: (width - 0.5) / int(8 * channels / 3),
        _of_lumina,
    ),
    "Lumina2Transformer2DModel": WidthKey(
        "ffn_dim_multiplier", lambda width, channels: (width - 0.5) / (4 * channels), _of_lumina
    ),
    **dict.fromkeys(
        ("JoyImageEditPlusTransformer3DModel", "JoyImageEditTransformer3DModel"),
        WidthKey("mlp_width_ratio", _ratio),
    ),
    **dict.fromkeys(
        (
            "DreamLiteTransformer2DModel", "LongCatAudioDiTTransformer", "StableAudio3DiTModel",
        ),
        WidthKey("ff_mult", _ratio),
    ),
}  # fmt: skip


def width_key(class_name: str) -> WidthKey | None:
    """The key for the width of the MLPs of a class of diffusers; None where it has none."""
    return _KEYS.get(class_name)
