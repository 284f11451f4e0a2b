"""A denoiser read layer by layer from its files gives the bits of the loaded one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ditprune import prune_
from ditprune.calibration.calibrate import find_unused, observe_calls
from ditprune.calibration.collect import calibrate_folder
from ditprune.calibration.sample import Sampling
from ditprune.calls import Call
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.denoiser.offload import offloaded
from ditprune.denoiser.pipeline import _is_too_large, load_denoiser, load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import run_call
from ditprune.denoiser.rows import to_placement
from ditprune.errors import ModelError
from ditprune.pruning.convert import to_compact
from folders import edit_tensors, save_denoiser, save_pipeline, shards_of
from tiny_denoisers import FAMILIES, Draw

LITTLE = 1000  # bytes; no denoiser fits
NAMES = (
    "DiTTransformer2DModel", "PixArtTransformer2DModel", "FluxTransformer2DModel",
    "SD3Transformer2DModel", "SanaTransformer2DModel", "WanTransformer3DModel",
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory) -> tuple[str, Path]:
    """A class, and a folder of it in several files."""
    folder = tmp_path_factory.mktemp("stream") / "denoiser"
    save_denoiser(FAMILIES[request.param].make(), folder, max_shard_size="20KB")
    return request.param, folder


def call_of(name: str, dtype: torch.dtype, seed: int = 0) -> Call:
    return to_placement(Call((), FAMILIES[name].call(Draw(seed))), "cpu", dtype)


def outputs(output: Any) -> list[Tensor]:
    values = output.values() if isinstance(output, dict) else output
    return [value for value in values if isinstance(value, Tensor)]


def dtypes_seen(denoiser: nn.Module, call: Call) -> dict[str, torch.dtype]:
    """The numbers that each layer's own weights are in when the layer runs."""
    seen: dict[str, torch.dtype] = {}

    def note(path: str) -> Any:
        def see(module: nn.Module, *_: Any) -> None:
            for name, parameter in module.named_parameters(path, recurse=False):
                seen[name] = parameter.dtype

        return see

    with hooked(denoiser, note):
        run_call(denoiser, call)
    return seen


@contextmanager
def hooked(denoiser: nn.Module, note: Any) -> Iterator[None]:
    """Forward hooks run inside accelerate's wrapping only where the layer itself is asked."""
    originals = {}
    for path, module in denoiser.named_modules():
        inner = getattr(module, "_old_forward", None)
        attribute = "_old_forward" if inner is not None else "forward"
        originals[module, attribute] = inner or module.forward
        see, run = note(path), originals[module, attribute]

        def forward(*args: Any, _see: Any = see, _run: Any = run, _own: Any = module, **kw: Any):
            _see(_own)
            return _run(*args, **kw)

        setattr(module, attribute, forward)
    try:
        yield
    finally:
        for (module, attribute), run in originals.items():
            setattr(module, attribute, run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_offloaded_gives_the_bits_of_the_loaded(dtype, family, same_bits) -> None:
    name, folder = family
    own, call = folder_fingerprints(folder), call_of(name, dtype)
    loaded = load_denoiser(folder, Placement(dtype=dtype))
    read = load_denoiser(folder, Placement(dtype=dtype, max_memory=LITTLE))
    assert_on_disk(read)
    ours, theirs = (outputs(run_call(one, call)) for one in (read, loaded))
    assert ours
    assert_on_disk(read)
    for one, two in zip(ours, theirs, strict=True):
        same_bits(one, two)
    calls = [call, call_of(name, dtype, 1)]
    statistics, expected = (observe_calls(one, calls, own) for one in (read, loaded))
    assert statistics.column_norms.keys() == expected.column_norms.keys()
    for layer, state in expected.column_norms.items():
        same_bits(statistics.column_norms[layer].sum_squares, state.sum_squares)
    assert statistics.never_called == expected.never_called
    assert_on_disk(read)


def assert_on_disk(denoiser: nn.Module) -> None:
    assert {parameter.device.type for parameter in denoiser.parameters()} == {"meta"}
    assert not denoiser.training


def test_the_layers_run_in_vain_are_the_same(family) -> None:
    name, folder = family
    own, call = folder_fingerprints(folder), call_of(name, torch.float32)
    loaded = load_denoiser(folder)
    read = load_denoiser(folder, Placement(max_memory=LITTLE))
    assert find_unused(read, call, own) == find_unused(loaded, call, own)
    assert_on_disk(read)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_diffusers_keeps_in_float32_is_kept(dtype, tmp_path) -> None:
    """Wan keeps its norms, its timestep embedder and its shift tables."""
    name = "WanTransformer3DModel"
    folder = save_denoiser(FAMILIES[name].make(), tmp_path / "wan")
    loaded = load_denoiser(folder, Placement(dtype=dtype))
    expected = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert set(expected.values()) == {torch.float32, dtype}
    read = load_denoiser(folder, Placement(dtype=dtype, max_memory=LITTLE))
    seen = dtypes_seen(read, call_of(name, dtype))
    assert seen == {name: expected[name] for name in seen}
    assert set(seen.values()) == {torch.float32, dtype}


def test_an_offloaded_calibration_writes_the_same_bytes(tiny_pipeline, tmp_path) -> None:
    model, sampling = locate(str(tiny_pipeline)), Sampling(6, num_inference_steps=2, batch_size=3)
    calibrate_folder(model, tmp_path / "loaded", sampling)
    calibrate_folder(model, tmp_path / "read", sampling, placement=Placement(max_memory=LITTLE))
    assert (tmp_path / "read").read_bytes() == (tmp_path / "loaded").read_bytes()
    pipeline = load_pipeline(model, Placement(max_memory=LITTLE))
    assert_on_disk(pipeline.transformer)
    assert {p.device.type for p in pipeline.vae.parameters()} == {"cpu"}


def test_half_of_the_memory_is_for_the_weights(tiny_pipeline) -> None:
    folder = tiny_pipeline / "transformer"
    num_parameters = sum(p.numel() for p in load_denoiser(folder).parameters())
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        least = 2 * size * num_parameters
        assert not _is_too_large(folder, Placement(dtype=dtype, max_memory=least))
        assert _is_too_large(folder, Placement(dtype=dtype, max_memory=least - 1))
    assert not _is_too_large(folder, Placement())


def test_a_tensor_that_is_missing_is_refused_by_name(own_pipeline) -> None:
    (file,) = (own_pipeline / "transformer").glob("*.safetensors")
    edit_tensors(file, lambda all_: all_.pop("proj_out_2.bias"))
    with pytest.raises(ModelError, match=r"tensor 'proj_out_2\.bias' is in config\.json's model"):
        offloaded(own_pipeline / "transformer", Placement(max_memory=LITTLE))


@pytest.fixture
def both(tiny_dit, tmp_path) -> tuple[Path, Path]:
    """A pruned pipeline, dense and compact, in shards, some tensors of which are not packed."""
    denoiser = tiny_dit()
    prune_(denoiser, saliency="magnitude", exclude=["*.0.*"])
    dense = save_pipeline(denoiser, tmp_path / "dense", dtype=torch.bfloat16, max_shard_size="60KB")
    small = tmp_path / "small"
    to_compact(locate(str(dense)), small)
    assert len(shards_of(small / "transformer")) > 1
    return dense, small


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_compact_folder_is_offloaded_as_the_dense_one_is(both, dtype, tmp_path) -> None:
    sampling = Sampling(6, num_inference_steps=2, batch_size=3)
    for folder, limit in zip(both, (None, LITTLE), strict=True):
        placement = Placement(dtype=dtype, max_memory=limit)
        calibrate_folder(
            locate(str(folder)), tmp_path / f"{folder.name}.stats", sampling, placement=placement
        )
    stats = [(tmp_path / f"{folder.name}.stats").read_bytes() for folder in both]
    assert stats[0] == stats[1]
    read = load_denoiser(both[1] / "transformer", Placement(dtype=dtype, max_memory=LITTLE))
    assert_on_disk(read)


def test_a_packed_weight_that_changed_is_refused_when_it_is_read(both) -> None:
    name = "transformer_blocks.1.attn1.to_q.weight"
    for file in shards_of(both[1] / "transformer"):

        def spoil(tensors: dict[str, Tensor]) -> None:
            if name in tensors:
                tensors[name][500] ^= 1  # in one of its values

        edit_tensors(file, spoil)
    read = load_denoiser(both[1] / "transformer", Placement(max_memory=LITTLE))
    with pytest.raises(ModelError, match=rf"{name}: .*bytes are not those"):
        run_call(read, call_of("DiTTransformer2DModel", torch.float32))
