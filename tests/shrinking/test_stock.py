"""Ordinary folders: the config alone makes the shrunk denoiser, with diffusers and without us."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ditprune.checkpoints.shrunk.form import Form, mark_
from ditprune.errors import ModelError, RecipeError
from ditprune.shrinking import width_keys
from ditprune.shrinking.block_config import built, shapes_of
from ditprune.shrinking.drop import drop_
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.stock import check_rebuilds, find_width, stock_config, stock_parts
from ditprune.shrinking.units import HEADS, NEURONS, Cut
from ditprune.shrinking.width_keys import width_key
from ditprune.targets.blocks import find_blocks
from tiny_denoisers import FAMILIES, Draw, exported

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
]

# By class a width and the value of its key that gives it. A ratio is that of MLPs of 32 channels.
WIDTHS: dict[str, tuple[int, float]] = {
    "SanaTransformer2DModel": (40, 1.25),
    "HunyuanDiT2DModel": (33, 1.03125),
    "LuminaNextDiT2DModel": (48, 47.5 / 85),
    "Lumina2Transformer2DModel": (48, 47.5 / 128),
    "PRXTransformer2DModel": (40, 1.25),
    "DreamLiteTransformer2DModel": (64, 2.0),
    "Flux2Transformer2DModel": (50, 1.5625),
    "Flux3Transformer2DModel": (50, 1.5625),
    "QwenImage21Transformer2DModel": (64, 2),
    "HunyuanImageTransformer2DModel": (64, 2.0),
    "HunyuanVideoTransformer3DModel": (64, 2.0),
    "HunyuanVideoFramepackTransformer3DModel": (64, 2.0),
    "HunyuanVideo15Transformer3DModel": (64, 2.0),
    "MotifVideoTransformer3DModel": (64, 2.0),
    "SanaVideoTransformer3DModel": (40, 1.25),
    "SanaWMTransformer3DModel": (40, 1.25),
    "CosmosTransformer3DModel": (40, 1.25),
    "JoyImageEditTransformer3DModel": (64, 2.0),
    "JoyImageEditPlusTransformer3DModel": (64, 2.0),
    "StableAudio3DiTModel": (40, 1.25),
    "LongCatAudioDiTTransformer": (64, 2.0),
    "NucleusMoEImageTransformer2DModel": (128, 128.5 * 1.5 / 128),  # of 128 channels
    **dict.fromkeys(
        (
            "UVit2DModel", "ErnieImageTransformer2DModel", "Ideogram4Transformer2DModel",
            "Krea2Transformer2DModel", "OmniGenTransformer2DModel",
            "SkyReelsV2Transformer3DModel", "WanTransformer3DModel", "WanVACETransformer3DModel",
            "WanAnimateTransformer3DModel", "WanAnimate2Transformer3DModel",
            "ChronoEditTransformer3DModel", "AnyFlowTransformer3DModel",
            "AnyFlowFARTransformer3DModel", "HeliosTransformer3DModel", "Cosmos3OmniTransformer",
            "Kandinsky5Transformer3DModel", "Kandinsky6Transformer3DModel",
            "Kandinsky6SRTransformer3DModel", "AceStepTransformer1DModel",
            "MiniMaxMusic3Transformer1DModel", "T5FilmDecoder",
        ),
        (40, 40),
    ),
}  # fmt: skip
LARGER = {"NucleusMoEImageTransformer2DModel": {"num_attention_heads": 8}}


def groups_of(denoiser: nn.Module) -> Any:
    blocks = [block.path for block in find_blocks(denoiser) if not block.auxiliary]
    return find_groups(denoiser, blocks)[0]


def class_of(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


@pytest.mark.parametrize("name", exported(FAMILIES))
def test_a_class_has_one_width_in_its_config_or_none(name: str) -> None:
    if name not in WIDTHS:
        assert width_key(name) is None
        return
    key, (width, value) = width_key(name), WIDTHS[name]
    config = {**FAMILIES[name].config, **LARGER.get(name, {})}
    changed = stock_config(class_of(name), config, None, width)
    assert key is not None
    assert {k: v for k, v in changed.items() if config.get(k) != v} == {key.key: value}
    widths = {g.num_units for g in groups_of(built(class_of(name), changed)).values()
              if g.kind == NEURONS}  # fmt: skip
    assert width in widths


@pytest.mark.parametrize("channels", [1408, 2240, 3840])
def test_a_ratio_gives_every_width_exactly(channels: int) -> None:
    key = width_key("Flux2Transformer2DModel")
    assert key is not None
    for width in range(1, 4 * channels):
        assert int(channels * key.value(width, channels)) == width


def test_what_else_has_the_width_of_mlps_stays() -> None:
    known = find_width(FAMILIES["StableAudio3DiTModel"].make())
    assert known is not None
    assert known.groups == ("transformer_blocks.0.ff", "transformer_blocks.1.ff")  # not the embed
    assert (known.width, known.step, known.channels) == (64, 1, 32)


def test_a_key_that_makes_something_else_narrower_gives_no_width(monkeypatch) -> None:
    denoiser = FAMILIES["MiniMaxH3Transformer3DModel"].make()  # its refiner of text has it, too
    key = width_key("WanTransformer3DModel")
    monkeypatch.setitem(width_keys._KEYS, "MiniMaxH3Transformer3DModel", key)
    assert find_width(denoiser) is None


def test_an_audio_stream_of_the_same_width_becomes_as_narrow() -> None:
    family = FAMILIES["Kandinsky6Transformer3DModel"]
    config = {**family.config, "ff_dim_a": 48}
    changed = stock_config(class_of(family.name), config, None, 32)
    assert (changed["ff_dim"], changed["ff_dim_a"]) == (32, 32)


@pytest.mark.parametrize(
    ("name", "width", "words"),
    [
        ("FluxTransformer2DModel", 64, "FluxTransformer2DModel: its config says no width"),
        ("QwenImage21Transformer2DModel", 50, "at most 96 and a multiple of 32"),
        ("WanTransformer3DModel", 64, "ffn_dim makes no MLPs of 64 neurons; expected at most 48"),
        ("WanTransformer3DModel", 0, "ffn_dim makes no MLPs of 0 neurons"),
    ],
)
def test_other_widths_are_refused(name: str, width: int, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        stock_config(class_of(name), FAMILIES[name].config, None, width)


def test_blocks_that_no_config_can_leave_out_are_refused() -> None:
    family = FAMILIES["SanaWMTransformer3DModel"]
    with pytest.raises(ModelError, match=r"which blocks stay \(3 of blocks\)"):
        stock_config(
            class_of(family.name), {**family.config, "num_layers": 4}, {"blocks": (0, 2, 3)}
        )


def test_a_denoiser_with_a_form_has_no_width_in_its_config() -> None:
    denoiser = FAMILIES["WanTransformer3DModel"].make()
    mark_(denoiser, Form())  # its tensors alone are smaller
    assert find_width(denoiser) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": 1}, r"blocks.1.* in what is written, and missing in the Wan"),
        ({"ffn_dim": 40}, r"blocks.0.ffn.net.0.proj.weight: is \[48, 32\] in what is written, and"),
        ({"num_layers": 3}, r"blocks.2.*: is missing in what is written"),
    ],
)
def test_a_config_of_another_denoiser_is_refused(change: dict[str, Any], words: str) -> None:
    family = FAMILIES["WanTransformer3DModel"]
    shapes = shapes_of(family.make())
    check_rebuilds(class_of(family.name), family.config, shapes)
    with pytest.raises(ModelError, match=words):
        check_rebuilds(class_of(family.name), {**family.config, **change}, shapes)


def test_parts_are_those_that_a_config_can_say() -> None:
    assert stock_parts("WanTransformer3DModel") == ("blocks", NEURONS)
    assert stock_parts("FluxTransformer2DModel", modulation="none") == ("blocks",)
    assert stock_parts("WanTransformer3DModel", [NEURONS]) == (NEURONS,)


@pytest.mark.parametrize(
    ("name", "parts", "modulation", "words"),
    [
        ("WanTransformer3DModel", [HEADS], None, "parts heads: .* leave heads out, or .* free"),
        ("FluxTransformer2DModel", [NEURONS], None, "parts neurons: .* pass parts blocks, or"),
        ("WanTransformer3DModel", None, "auto", "modulation auto: .* leave it out, or .* free"),
        ("WanTransformer3DModel", None, 0.75, r"modulation=0\.75: "),
    ],
)
def test_parts_that_no_config_can_say_are_refused(
    name: str, parts: list[str] | None, modulation: Any, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        stock_parts(name, parts, modulation)


# --- Folders that load without ditprune ---

STOCK: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], int | None]] = {
    "FluxTransformer2DModel": (
        {"num_layers": 3, "num_single_layers": 4},
        {"transformer_blocks": (0, 2), "single_transformer_blocks": (0, 1, 3)}, None,
    ),
    "SD3Transformer2DModel": (
        {"num_layers": 5, "dual_attention_layers": (0, 1, 2)}, {"transformer_blocks": (0, 2, 4)},
        None,
    ),
    "WanTransformer3DModel": ({"num_layers": 3}, {"blocks": (0, 2)}, 30),
    "Flux2Transformer2DModel": (
        {"num_single_layers": 3}, {"single_transformer_blocks": (0, 2)}, 50,
    ),
    "SanaTransformer2DModel": ({}, {}, 31),
}  # fmt: skip
LOADING = """
import sys, json, torch
sys.modules["ditprune"] = None
import diffusers
for name in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{name}"
    denoiser, said = getattr(diffusers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(said.values()), said
    call = torch.load(f"{folder}/call.pt")
    with torch.no_grad():
        torch.save(denoiser.eval()(**call, return_dict=False)[0], f"{folder}/output.pt")
try:
    import ditprune
except ImportError:
    print("no ditprune")
"""


def write_stock(name: str, folder: Path) -> Tensor:
    """A tiny denoiser without some of its blocks and neurons, as plain tensors and a config."""
    from safetensors.torch import save_file

    more, stay, width = STOCK[name]
    family = replace(FAMILIES[name], config={**FAMILIES[name].config, **more})
    denoiser, call = family.make(), family.call(Draw(0))
    config = stock_config(type(denoiser), denoiser.config, stay, width)
    if width is not None:
        known = find_width(denoiser)
        assert known is not None
        every = torch.Generator().manual_seed(0)
        kept = {
            group: sorted(torch.randperm(known.width, generator=every)[:width].tolist())
            for group in known.groups
        }
        cut_(denoiser, Cut(groups_of(denoiser), kept))
    drop_(denoiser, stay)
    tensors = {n: t.contiguous() for n, t in denoiser.state_dict().items()}
    check_rebuilds(type(denoiser), config, {n: t.shape for n, t in tensors.items()})
    folder.mkdir()
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    plain = {key: value for key, value in config.items() if key != "_use_default_values"}
    (folder / "config.json").write_text(json.dumps({**plain, "_class_name": name}))
    torch.save(call, folder / "call.pt")
    with torch.no_grad():
        output: Tensor = denoiser(**call, return_dict=False)[0]
    return output


def test_a_folder_loads_where_there_is_no_ditprune(tmp_path: Path) -> None:
    ours = {name: write_stock(name, tmp_path / name) for name in STOCK}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path), *STOCK], capture_output=True, text=True
    )
    assert done.stdout == "no ditprune\n", done.stderr
    for name, output in ours.items():
        theirs = torch.load(tmp_path / name / "output.pt")
        assert torch.equal(output, theirs), name
