"""Blocks go where the denoiser then predicts what it predicts with a block that adds nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.shrunk.form import Form, mark_, marked_form, shrunk_form
from ditprune.denoiser.replay import run_call, tensors_in
from ditprune.shrinking.block_config import config_without
from ditprune.shrinking.drop import (
    check_drops,
    drop_,
    droppable,
    staying,
    why_not,
    without_blocks,
)
from ditprune.targets.blocks import find_blocks
from foreign_builds import Block as ForeignBlock
from foreign_builds import Denoiser
from foreign_builds import calls as foreign_calls
from tiny_denoisers import FAMILIES, Draw

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
]

ENDS = "the first and the last of a list stay"
ELSE = "gives something else"
UNLIKE = "it is unlike the blocks beside it"

# Deeper than in the table of tiny denoisers: what else is in the config; how many blocks may go;
# whether a config says so; why others stay, besides those at the ends of a list.
DEEPER: dict[str, tuple[dict[str, Any], int, bool, dict[str, str]]] = {
    "FluxTransformer2DModel": ({"num_layers": 4, "num_single_layers": 3}, 3, True, {}),
    "SD3Transformer2DModel": (
        {"num_layers": 6, "dual_attention_layers": (0, 1, 2)}, 4, True, {},
    ),
    "WanTransformer3DModel": ({"num_layers": 4}, 2, True, {}),
    "WanVACETransformer3DModel": (
        {"num_layers": 5, "vace_layers": [0, 3]}, 2, True, {"blocks.3": "vace_layers"},
    ),
    "WanAnimateTransformer3DModel": (
        {"num_layers": 4}, 0, True, {"blocks.1": ELSE, "blocks.2": ELSE},
    ),
    "BriaFibo2Transformer2DModel": (
        {"n_layers": 5, "injection_layer_ids": (2,)}, 2, True, {"layers.2": "injection_layer_ids"},
    ),
    "AceStepTransformer1DModel": ({"num_hidden_layers": 4}, 2, True, {}),
    "EasyAnimateTransformer3DModel": ({"num_layers": 5, "mmdit_layers": 3}, 3, True, {}),
    "MotifVideoTransformer3DModel": (
        {"num_layers": 2, "num_single_layers": 6, "num_decoder_layers": 3}, 4, True, {},
    ),
    "NucleusMoEImageTransformer2DModel": (
        {"num_layers": 6, "capacity_factors": [1.0, 1.0, 1.0, 2.0, 4.0, 1.0]}, 4, False, {},
    ),
    "HiDreamImageTransformer2DModel": (
        {"num_layers": 3, "num_single_layers": 4, "llama_layers": [3, 2, 1, 0, 1, 2, 3]}, 3, True,
        {},
    ),
    "HunyuanDiT2DModel": ({}, 0, True, {"blocks.1": "does not run", "blocks.2": "does not run"}),
    "ChromaTransformer2DModel": (
        {"num_layers": 3, "num_single_layers": 2}, 0, True, {"transformer_blocks.1": ELSE},
    ),
    "LatteTransformer3DModel": (
        {"num_layers": 3}, 0, True,
        {"transformer_blocks.1": ELSE, "temporal_transformer_blocks.1": ELSE},
    ),
    "SanaWMTransformer3DModel": (
        {"num_layers": 4}, 0, True, {"blocks.1": UNLIKE, "blocks.2": UNLIKE},
    ),
}  # fmt: skip


def deeper(name: str, **more: Any) -> tuple[nn.Module, Call]:
    family = FAMILIES[name]
    family = replace(family, config={**family.config, **DEEPER[name][0], **more})
    return family.make(), Call.of(family.call(Draw(0)))


def paths(denoiser: nn.Module) -> list[str]:
    return [block.path for block in find_blocks(denoiser) if not block.auxiliary]


def outputs(denoiser: nn.Module, call: Call) -> list[Tensor]:
    return [tensor for _, tensor in tensors_in(run_call(denoiser, call.copied()))]


def rebuilt(denoiser: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """What the class makes of a config, with the values of this denoiser."""
    made: nn.Module = type(denoiser)(  # type: ignore[call-arg]
        **{key: value for key, value in config.items() if not key.startswith("_")}
    )
    made.load_state_dict(denoiser.state_dict())
    return made.eval()


@pytest.mark.parametrize("name", DEEPER)
def test_every_block_of_a_class_may_go_or_says_why_not(name: str) -> None:
    _, count, in_config, reasons = DEEPER[name]
    denoiser, call = deeper(name)
    may, whole = droppable(denoiser, paths(denoiser))
    good, failed = check_drops(denoiser, call, may)
    stay = {path: reason for path, reason in {**whole, **failed}.items() if reason != ENDS}
    assert stay.keys() == reasons.keys()
    assert all(reasons[path] in reason for path, reason in stay.items())
    assert len(good) == count
    if not count:
        return
    left = staying(denoiser, good[:-1] or good)
    config = config_without(type(denoiser), denoiser.config, left)
    assert (config is not None) == in_config
    drop_(denoiser, left)
    assert (marked_form(denoiser) is None) == in_config  # else it is no ordinary one
    if config is not None:
        again = rebuilt(denoiser, config)
        for a, b in zip(outputs(denoiser, call), outputs(again, call), strict=True):
            assert torch.equal(a, b)
        assert dict(rebuilt(denoiser, denoiser.config).config) == dict(again.config)


def test_lists_in_the_config_are_counted_anew() -> None:
    def without(name: str, path: str, stay: tuple[int, ...], key: str) -> Any:
        denoiser, _ = deeper(name)
        config = config_without(type(denoiser), denoiser.config, {path: stay})
        return config and config[key]

    blocks = "transformer_blocks"
    dual = without("SD3Transformer2DModel", blocks, (0, 2, 4, 5), "dual_attention_layers")
    assert dual == (0, 1)
    assert without("WanVACETransformer3DModel", "blocks", (0, 3, 4), "vace_layers") == [0, 1]
    ids = without("BriaFibo2Transformer2DModel", "layers", (0, 2, 4), "injection_layer_ids")
    assert ids == (1,)
    kinds = without("AceStepTransformer1DModel", "layers", (0, 2, 3), "layer_types")
    assert kinds == ["sliding_attention", "sliding_attention", "full_attention"]
    denoiser, _ = deeper("HiDreamImageTransformer2DModel")
    stay = staying(denoiser, ["single_stream_blocks.1"])
    assert stay["caption_projection"] == (0, 1, 2, 3, 5, 6, 7)
    fewer = config_without(type(denoiser), denoiser.config, stay)
    assert fewer is not None
    assert fewer["llama_layers"] == [3, 2, 1, 0, 2, 3]
    assert without("EasyAnimateTransformer3DModel", blocks, (0, 1, 4), "mmdit_layers") == 2
    single = "single_transformer_blocks"
    assert without("MotifVideoTransformer3DModel", single, (0, 1, 5), "num_decoder_layers") == 1


def test_lists_of_one_count_lose_as_many_or_no_config_says_it() -> None:
    denoiser, _ = deeper("LatteTransformer3DModel")
    spatial, temporal = "transformer_blocks", "temporal_transformer_blocks"
    both = config_without(type(denoiser), denoiser.config, {spatial: (0, 2), temporal: (0, 2)})
    assert both is not None
    assert both["num_layers"] == 2
    assert config_without(type(denoiser), denoiser.config, {spatial: (0, 2)}) is None


def test_a_denoiser_is_as_before_after_it_was_without_blocks() -> None:
    denoiser, call = deeper("AceStepTransformer1DModel")
    before, config, kinds = outputs(denoiser, call), dict(denoiser.config), denoiser.layer_types
    with without_blocks(denoiser, {"layers": (0, 3)}):
        assert len(denoiser.layers) == denoiser.config.num_hidden_layers == 2
        assert denoiser.layer_types == ["sliding_attention", "full_attention"]
    assert (dict(denoiser.config), denoiser.layer_types) == (config, kinds)
    assert all(map(torch.equal, before, outputs(denoiser, call)))


def test_a_form_follows_the_blocks_that_a_config_says() -> None:
    denoiser, _ = deeper("WanTransformer3DModel")
    smaller = {f"blocks.{i}.attn1": {"heads": 1} for i in range(4)}
    for path, values in smaller.items():
        vars(denoiser.get_submodule(path)).update(values)
    mark_(denoiser, Form({path: smaller[path] for path in ("blocks.1.attn1", "blocks.3.attn1")}))
    drop_(denoiser, {"blocks": (0, 2, 3)})
    assert denoiser.config.num_layers == 3
    assert shrunk_form(denoiser) == Form({"blocks.2.attn1": {"heads": 1}})


class Deep(Denoiser):
    depth = 4


def test_a_denoiser_without_a_config_loses_blocks() -> None:
    torch.manual_seed(0)
    denoiser, call = Deep(), Call.of(foreign_calls()[0])
    may, _ = droppable(denoiser, paths(denoiser))
    assert check_drops(denoiser, call, may) == (["blocks.1", "blocks.2"], {})
    assert config_without(Deep, {}, {"blocks": (0, 3)}) is None
    drop_(denoiser, {"blocks": (0, 2, 3)})
    assert len(denoiser.blocks) == 3


class Numbered(Deep):
    """Its forward counts: what it adds between blocks depends on their places."""

    def trunk(self, h: Tensor) -> Tensor:
        for place, block in enumerate(self.blocks):
            h = block(h + place)
        return self.head(h)


class Wide(Deep):
    """Its blocks give another shape than they take."""

    def trunk(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h)[:, :-1]
        return self.head(h)

    class block(ForeignBlock):  # noqa: N801 - as in `Denoiser`
        def forward(self, h: Tensor) -> Tensor:
            return torch.cat([super().forward(h), h[:, :1]], dim=1)


@pytest.mark.parametrize(("build", "words"), [(Numbered, ELSE), (Wide, "no input is as large")])
def test_blocks_that_a_forward_counts_or_reshapes_stay(build: type[Deep], words: str) -> None:
    torch.manual_seed(0)
    denoiser, call = build(), Call.of(foreign_calls()[0])
    assert words in why_not(denoiser, call, ["blocks.1"])
    good, reasons = check_drops(denoiser, call, ["blocks.1", "blocks.2"])
    assert good == []
    assert all(words in reason for reason in reasons.values())


def test_of_inputs_of_one_shape_the_nearest_goes_on() -> None:
    class Second(Deep):
        def trunk(self, h: Tensor) -> Tensor:
            start = h
            for block in self.blocks:
                h = block(start, h)
            return self.head(h)

        class block(ForeignBlock):  # noqa: N801
            def forward(self, _start: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
                return h + 0.1 * super().forward(h)

    torch.manual_seed(0)
    denoiser, call = Second(), Call.of(foreign_calls()[0])
    assert check_drops(denoiser, call, ["blocks.1", "blocks.2"])[1] == {}
