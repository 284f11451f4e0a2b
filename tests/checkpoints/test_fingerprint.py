"""Fingerprints tell models apart, and not dtypes or places."""

from __future__ import annotations

import pytest
import torch

from ditprune.checkpoints.skeleton import (
    combined_fingerprint,
    module_fingerprints,
    weight_fingerprints,
)
from ditprune.checkpoints.weights import Weights
from ditprune.targets.discover import discover
from folders import save_denoiser

NAME = "transformer_blocks.2.ff.net.2"  # 32 × 128: four runs of 1,024


def of(denoiser) -> dict[str, str]:
    return module_fingerprints(denoiser, discover(denoiser).values())


@pytest.mark.parametrize("max_shard_size", ["60KB", "10GB"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_on_disk_and_loaded_in_float32_agree(dtype, max_shard_size, tiny_dit, tmp_path) -> None:
    from diffusers import DiTTransformer2DModel

    folder = save_denoiser(tiny_dit(), tmp_path / "m", dtype, max_shard_size=max_shard_size)
    on_disk = weight_fingerprints(Weights(folder), discover(tiny_dit()).values())
    loaded = DiTTransformer2DModel.from_pretrained(folder).float()
    assert on_disk == of(loaded)
    assert on_disk == of(tiny_dit().to(dtype))
    assert on_disk.keys() == discover(tiny_dit()).keys()
    assert (on_disk == of(tiny_dit())) == (dtype == torch.float32)


def test_another_model_has_others_throughout(tiny_dit) -> None:
    one, two = of(tiny_dit()), of(tiny_dit(seed=1))
    assert one == of(tiny_dit())
    assert not one.items() & two.items()
    assert combined_fingerprint(one) != combined_fingerprint(two)


@pytest.mark.parametrize("place", [0, 1023, 1536, 2047, 2559, 3072, 4095])
def test_each_of_the_three_runs_counts(place, tiny_dit) -> None:
    denoiser = tiny_dit()
    with torch.no_grad():
        denoiser.get_parameter(f"{NAME}.weight").view(-1)[place] += 0.5
    changed = {name for name, value in of(tiny_dit()).items() if of(denoiser)[name] != value}
    assert changed == {NAME}


def test_name_and_shape_count(tiny_dit) -> None:
    denoiser = tiny_dit()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.fill_(0.25)
    values = of(denoiser)
    assert len(set(values.values())) == len(values)


def test_the_combined_one_does_not_depend_on_the_order(tiny_dit) -> None:
    values = of(tiny_dit())
    backwards = dict(reversed(values.items()))
    assert list(values) != list(backwards)
    assert combined_fingerprint(values) == combined_fingerprint(backwards)
    without = {name: value for name, value in values.items() if name != NAME}
    assert combined_fingerprint(without) != combined_fingerprint(values)
