"""A ControlNet goes on working with the shrunk denoiser; an IP-Adapter is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ditprune
import pipeline_parts as parts
from ditprune.errors import ModelError
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.units import Cut
from ditprune.targets.blocks import find_blocks
from tiny_denoisers import FAMILIES, Draw, redraw_

FLUX, SD3 = "FluxTransformer2DModel", "SD3Transformer2DModel"
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    FLUX: ("FluxControlNetModel", {"num_single_layers": 1}),
    SD3: ("SD3ControlNetModel", {}),
}


def control_of(name: str, denoiser: nn.Module) -> Any:
    import diffusers

    class_name, more = CONTROLS[name]
    control_class = getattr(diffusers, class_name)
    known = control_class.__init__.__wrapped__.__code__.co_varnames
    config = {key: value for key, value in denoiser.config.items() if key in known}
    return redraw_(control_class(**{**config, "num_layers": 1, **more}), 3)


@torch.no_grad()
def output(denoiser: nn.Module, control: Any, name: str, scale: float) -> torch.Tensor:
    arguments = FAMILIES[name].call(Draw(5))
    picture = arguments["hidden_states"].flip(0).roll(1, -1)
    given = control(
        **arguments, controlnet_cond=picture, conditioning_scale=scale, return_dict=False
    )
    names = ("controlnet_block_samples", "controlnet_single_block_samples")
    words = (
        {"block_controlnet_hidden_states": given[0]}
        if name == SD3
        else dict(zip(names, given, strict=True))
    )
    return denoiser(**arguments, **words, return_dict=False)[0]


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # diffusers' own use
@pytest.mark.parametrize("name", [FLUX, SD3])
def test_a_shrunk_denoiser_follows_its_controlnet(name: str) -> None:
    dense = redraw_(parts.denoiser(name), 0).eval()
    control = control_of(name, dense).eval()
    smaller = redraw_(parts.denoiser(name), 0).eval()
    groups, _ = find_groups(smaller, [b.path for b in find_blocks(smaller) if not b.auxiliary])
    for group in groups.values():  # what goes gives nothing, so that the same must come
        for consumer in group.consumers:
            for denoiser in (dense, smaller):
                denoiser.get_submodule(consumer.layer).weight.data[
                    :, consumer.columns[1:].flatten()
                ] = 0
    cut_(smaller, Cut(groups, dict.fromkeys(groups, (0,))))
    expected, got = (output(each, control, name, 1.0) for each in (dense, smaller))
    assert torch.allclose(got, expected, atol=1e-5 * expected.abs().max().item())
    assert not torch.allclose(got, output(smaller, control, name, 0.0), rtol=0.01)


def test_a_denoiser_with_an_ip_adapter_stays_as_it_is() -> None:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0

    denoiser = redraw_(parts.denoiser(SD3), 0).eval()
    denoiser.transformer_blocks[0].attn.processor = SD3IPAdapterJointAttnProcessor2_0(32, 8, 16)
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    calls = [FAMILIES[SD3].call(Draw(seed)) for seed in range(2)]
    with pytest.raises(ModelError, match=r"IP-Adapter.*unload_ip_adapter") as caught:
        ditprune.shrink_(denoiser, calls, ratio=0.3)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], t) for name, t in denoiser.state_dict().items())
