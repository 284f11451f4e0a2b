"""Pointwise convolutions all the way: observed, pruned in memory and on disk, verified, loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.statistics_file import read_statistics_file, save_statistics
from ditprune.errors import ModelError
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.verify import false_claims
from folders import STEM, edit_json, edit_tensors, save_denoiser, tensors_on_disk
from tiny_denoisers import FAMILIES, Draw

SANA = FAMILIES["SanaTransformer2DModel"]
NAME = "transformer_blocks.1.ff.conv_point"


class Block(nn.Module):
    """Query, key and one convolution."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.to_q, self.to_k, self.mix = nn.Linear(6, 6), nn.Linear(6, 6), convolution

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.movedim(-self.mix.weight.ndim + 1, -1)
        return self.mix(x).sum() + self.to_q(tokens).sum() + self.to_k(tokens).sum()


class Denoiser(nn.Module):
    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(convolution)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


@pytest.mark.parametrize("is_batched", [True, False])
@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_the_norm_is_over_all_positions_of_each_channel(convolution, is_batched: bool) -> None:
    denoiser = Denoiser(convolution(6, 4, 1))
    num_axes = denoiser.blocks[0].mix.weight.ndim - 2
    x = torch.randn([*([3] if is_batched else []), 6, *[5, 2, 4][:num_axes]])
    stats = ditprune.calibrate(denoiser, [{"x": x}, {"x": 2 * x}])
    tokens = x.movedim(1 if is_batched else 0, -1).reshape(-1, 6)
    expected = torch.cat([tokens, 2 * tokens]).norm(dim=0)
    torch.testing.assert_close(stats.column_norm("blocks.0.mix"), expected)
    torch.testing.assert_close(stats.column_norm("blocks.0.to_q"), expected)
    assert stats.num_tokens("blocks.0.mix") == 2 * len(tokens)


@pytest.fixture(scope="module")
def stats() -> ditprune.Statistics:
    return ditprune.calibrate(SANA.make(), [SANA.call(Draw(seed)) for seed in (1, 2)])


@pytest.fixture(
    params=[{}, {"pattern": "2:4"}, {"granularity": "channel"}, {"cag_threshold": 0.02}], ids=str
)
def pruned(request, stats, tmp_path) -> tuple[dict[str, Any], Path]:
    """What was asked, and the folder."""
    model = save_denoiser(SANA.make(), tmp_path / "model")
    save_statistics({"transformer": stats}, tmp_path / "stats.safetensors")
    loaded = read_statistics_file(tmp_path / "stats.safetensors")
    prune_checkpoint(locate(str(model)), tmp_path / "out", loaded, build(**request.param))
    return request.param, tmp_path / "out"


def test_a_folder_gets_the_bits_of_pruning_in_memory(pruned, stats, same_bits) -> None:
    words, out = pruned
    denoiser = SANA.make()
    outcome = ditprune.prune_(denoiser, stats, **words)
    assert {target.kind for target in outcome.targets.values()} == {"linear", "convolution"}
    state = denoiser.state_dict()
    for name, tensor in tensors_on_disk(out).items():
        same_bits(tensor, state[name])
    weight = state[f"{NAME}.weight"]
    assert weight.shape == (32, 80, 1, 1)
    assert torch.count_nonzero(weight) == weight.numel() // 2
    record = json.loads((out / "ditprune.json").read_text(encoding="utf-8"))["targets"][NAME]
    assert (record["shape"], record["kind"]) == ([32, 80], "convolution")
    if "pattern" in words:
        groups = (weight.reshape(-1, 4) == 0).sum(1)
        assert (groups == 2).all()


def test_the_folder_keeps_its_claims_and_loads(pruned) -> None:
    import diffusers

    _, out = pruned
    assert list(false_claims(locate(str(out)))) == []
    denoiser = diffusers.SanaTransformer2DModel.from_pretrained(out)
    with torch.no_grad():
        assert denoiser(**SANA.call(Draw(0))).sample.isfinite().all()


def test_a_weight_put_back_is_found(pruned) -> None:
    _, out = pruned
    edit_tensors(
        out / f"{STEM}.safetensors",
        lambda tensors: tensors[f"{NAME}.weight"].masked_fill_(tensors[f"{NAME}.weight"] == 0, 1),
    )
    lines = [line for line in false_claims(locate(str(out))) if line.startswith(NAME)]
    assert any("0 zeros on disk" in line for line in lines)
    assert any("have fewer than" in line for line in lines)


def test_another_shape_is_found_in_the_manifest(pruned) -> None:
    _, out = pruned
    edit_json(out / "ditprune.json", lambda m: m["targets"][NAME].update(shape=[80, 32]))
    lines = list(false_claims(locate(str(out))))
    assert f"{NAME}: shape [32, 80] on disk, [80, 32] claimed" in lines


def test_a_convolution_stored_as_a_matrix_is_refused(tmp_path) -> None:
    model = save_denoiser(SANA.make(), tmp_path / "model")
    edit_tensors(
        model / f"{STEM}.safetensors",
        lambda tensors: tensors.update({f"{NAME}.weight": tensors[f"{NAME}.weight"].flatten(1)}),
    )
    with pytest.raises(
        ModelError, match=r"has shape \[32, 80\], config.json gives \[32, 80, 1, 1\]"
    ):
        prune_checkpoint(locate(str(model)), tmp_path / "out", None, build(saliency="magnitude"))
