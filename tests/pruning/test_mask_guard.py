"""Masks on loaded denoisers whose layers are under adapters, in wrappers, or cannot be written."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import ditprune
from adapters import Lora, Packed, Rotated, wrap_all
from ditprune.errors import ModelError
from ditprune.pruning import masks_in_memory

NAME = "transformer_blocks.1.attn1.to_q"


@pytest.fixture
def mask(tiny_pipeline, tmp_path) -> Path:
    ditprune.prune(tiny_pipeline, tmp_path / "out", saliency="magnitude")
    ditprune.extract_mask(tmp_path / "out", tmp_path / "mask.safetensors")
    return tmp_path / "mask.safetensors"


def test_a_mask_reaches_the_layers_under_loras_and_those_that_were_merged(tiny_dit, mask) -> None:
    denoiser, plain = tiny_dit(), tiny_dit()
    expected = ditprune.apply_mask_(plain, mask)
    names = wrap_all(denoiser, leaf="attn1.to_q")
    lora = [p.detach().clone() for n, p in denoiser.named_parameters() if "lora_" in n]
    outcome = ditprune.apply_mask_(denoiser, mask)
    assert outcome.targets == expected.targets
    assert outcome.fingerprint == expected.fingerprint
    for name in names:
        base = denoiser.get_submodule(name).base_layer
        assert torch.equal(base.weight, plain.get_submodule(name).weight)
    after = [p for n, p in denoiser.named_parameters() if "lora_" in n]
    assert all(torch.equal(a, b) for a, b in zip(after, lora, strict=True))
    for name in names:
        layer = denoiser.get_submodule(name)
        assert isinstance(layer, Lora)
        denoiser.set_submodule(name, layer.merge_())
    assert (denoiser.get_submodule(NAME).weight != 0).all()
    ditprune.apply_mask_(denoiser, mask)
    zeros = denoiser.get_submodule(NAME).weight == 0
    assert torch.equal(zeros, plain.get_submodule(NAME).weight == 0)


@pytest.mark.parametrize(
    "wrap", [partial(torch.compile, backend="eager"), nn.DataParallel], ids=["compiled", "parallel"]
)
def test_a_mask_fits_a_wrapped_denoiser(tiny_dit, mask, wrap) -> None:
    denoiser, plain = tiny_dit(), tiny_dit()
    expected = ditprune.apply_mask_(plain, mask)
    assert ditprune.apply_mask_(wrap(denoiser), mask).targets == expected.targets
    assert torch.equal(denoiser.get_submodule(NAME).weight, plain.get_submodule(NAME).weight)


def subclass(layer: nn.Module, _: nn.Module) -> None:
    layer.weight = nn.Parameter(Packed(layer.weight.detach()), requires_grad=False)


CASES = {
    "tensor subclass": (subclass, "is a Packed, a tensor subclass"),
    "parametrised": (
        lambda layer, _: nn.utils.parametrizations.weight_norm(layer), "remove_parametrizations"
    ),
    "meta": (lambda layer, _: layer.to("meta"), "on the meta device"),
    "another adapter": (lambda layer, d: d.set_submodule(NAME, Rotated(layer)), "fuse_lora"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), CASES.values(), ids=list(CASES))
def test_a_mask_is_refused_before_anything_changes(tiny_dit, mask, change, reason) -> None:
    denoiser = tiny_dit()
    change(denoiser.get_submodule(NAME), denoiser)
    other = denoiser.get_submodule("transformer_blocks.0.attn1.to_q").weight
    with pytest.raises(ModelError, match=rf"^{NAME}: .*{reason}"):
        ditprune.apply_mask_(denoiser, mask)
    assert (other != 0).all()


def test_the_zeros_of_a_mask_are_read_back(tiny_dit, mask, monkeypatch) -> None:
    denoiser = tiny_dit()
    layer = denoiser.get_submodule(NAME)
    copies = property(lambda self: nn.Parameter(self._parameters["weight"].detach().clone()))
    layer.__class__ = type("Copying", (nn.Linear,), {"weight": copies})
    with pytest.raises(ModelError, match=rf"^{NAME}: .*computed before each call"):
        ditprune.apply_mask_(denoiser, mask)
    monkeypatch.setattr(masks_in_memory, "refuse_unwritable", lambda *_: None)
    with pytest.raises(ModelError, match=rf"^{NAME}: .*are not what was written"):
        ditprune.apply_mask_(denoiser, mask)
    assert (layer._parameters["weight"] != 0).all()
