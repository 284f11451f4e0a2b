"""A shrunk folder goes through every verb that a dense one goes through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiTPipeline

import ditprune
from ditprune.checkpoints.hub import push_folder
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.mask_file import MaskFile
from ditprune.checkpoints.shrunk.form import shrunk_form
from ditprune.denoiser.offload import offloaded
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError
from ditprune.progress import silent
from ditprune.pruning.mask_transfer import apply_masks
from ditprune.reporting import card
from ditprune.reporting.told import facts_of_denoisers
from ditprune.shrinking.in_folder import shrink_folder
from ditprune.shrinking.recipe import ShrinkRecipe
from fake_hub import TOKEN, fake_hub
from folders import edit_json, files_of, save_pipeline, tensors_on_disk
from shrunk_by_hand import DIT, dense_tiny, described, what_goes


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A pipeline whose denoiser is shrunk, with its manifest; the dense one lies beside it."""
    denoiser = dense_tiny(DIT)
    folder = tmp_path_factory.mktemp("verbs") / "small"
    return described(denoiser, what_goes(denoiser), folder, save_pipeline)


@pytest.fixture(scope="module")
def pruned(small) -> Path:
    """Its pruned copy."""
    pipe = DiTPipeline.from_pretrained(small)
    calls = ditprune.sample(pipe, num_inference_steps=2, num_samples=4)
    stats = ditprune.calibrate(pipe, calls)
    plan = ditprune.inspect(small, stats)
    outcome = ditprune.prune(small, small.with_name("pruned"), stats=stats)
    assert plan.targets.keys() == outcome.targets.keys()
    assert any(name.endswith("norm1.linear.up") for name in plan.targets)
    return small.with_name("pruned")


def test_it_is_pruned_and_keeps_what_is_known_of_it(small, pruned) -> None:
    assert ditprune.verify(pruned) == []
    before = tensors_on_disk(small / "transformer")
    after = tensors_on_disk(pruned / "transformer")
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    facts = facts_of_denoisers({"transformer": pruned / "transformer"})
    assert facts[0].startswith("shrunk before it was pruned: ")
    edit = lambda change: edit_json(pruned / "transformer" / "ditprune.json", change)  # noqa: E731
    content = json.loads((pruned / "transformer" / "ditprune.json").read_text())
    edit(lambda c: next(iter(c["base"]["shrunk"]["ranks"].values())).update(rank=3))
    assert any("follows from what went" in line for line in ditprune.verify(pruned))
    edit(lambda c: c.update(content))


def test_it_is_packed_and_unpacked(pruned, tmp_path) -> None:
    ditprune.convert(pruned, tmp_path / "compact", to="compact")
    ditprune.convert(tmp_path / "compact", tmp_path / "again", to="dense")
    assert ditprune.verify(tmp_path / "compact") == []
    assert files_of(tmp_path / "again") == files_of(pruned)
    states = [
        DiTPipeline.from_pretrained(folder).transformer.state_dict()
        for folder in (pruned, tmp_path / "compact")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_its_mask_is_taken_and_given(small, pruned, tmp_path) -> None:
    file = tmp_path / "mask.safetensors"
    ditprune.extract_mask(pruned, file)
    apply_masks(locate(str(small)), MaskFile(file), tmp_path / "applied")
    tensors = [tensors_on_disk(f / "transformer") for f in (pruned, tmp_path / "applied")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    with pytest.raises(ModelError, match="is shrunk, not pruned"):
        ditprune.extract_mask(small, tmp_path / "none.safetensors")


def test_its_weights_stay_on_disk(small) -> None:
    folder = small / "transformer"
    call = {
        "hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([1, 2]),
        "class_labels": torch.tensor([1, 2]),
    }  # fmt: skip
    with torch.no_grad():
        left = offloaded(folder, Placement())(**call).sample
        assert torch.equal(left, DiTPipeline.from_pretrained(small).transformer(**call).sample)


def test_it_is_evaluated_beside_its_dense_and_its_pruned_model(small, pruned, tmp_path) -> None:
    results = ditprune.evaluate(
        small.with_name("small-before"), [small, pruned], tmp_path / "eval",
        num_images=2, num_held_out=2, num_inference_steps=2,
    )  # fmt: skip
    dense, shrunk, sparse = (model["accounting"] for model in results["models"])
    before, after = (
        sum(t.numel() for t in tensors_on_disk(f / "transformer").values())
        for f in (small.with_name("small-before"), small)
    )
    assert (dense["num_parameters"], shrunk["num_parameters"]) == (before, after)
    assert shrunk["macs_per_step"] == shrunk["macs_per_step_effective"] < dense["macs_per_step"]
    assert sparse["macs_per_step_effective"] < sparse["macs_per_step"] == shrunk["macs_per_step"]
    assert any("parameters went" in line for line in results["models"][1]["told"])
    peaks = [model["peak_memory_bytes"] for model in (dense, shrunk, sparse)]
    assert all(peak and peak > 50e6 for peak in peaks) or not Path("/proc/self/clear_refs").exists()
    page = ditprune.report(tmp_path / "eval").read_text()
    assert "fewer parameters" in page
    assert "fewer MACs a step" in page


def test_it_is_shrunk_again(small, tmp_path) -> None:
    calls = ditprune.sample(
        DiTPipeline.from_pretrained(small), num_inference_steps=2, num_samples=4
    )
    recipe = ShrinkRecipe(ratio=0.3, multiple=4, modulation=0.5)
    shrink_folder(
        locate(str(small)), tmp_path / "again", lambda _: list(calls), {"transformer": recipe},
        Placement(), False, silent,
    )  # fmt: skip
    assert ditprune.verify(tmp_path / "again") == []
    first, second = (
        shrunk_form(DiTPipeline.from_pretrained(folder).transformer)
        for folder in (small, tmp_path / "again")
    )
    assert second.blocks == first.blocks
    assert second.ranks.keys() > first.ranks.keys()
    sizes = [sum(t.numel() for t in tensors_on_disk(f / "transformer").values())
             for f in (small, tmp_path / "again")]  # fmt: skip
    assert sizes[1] < sizes[0]


def test_its_card_says_what_went(small) -> None:
    assert card.write(small)
    text = (small / "README.md").read_text()
    assert "import ditprune  # knows the smaller layers" in text
    assert "blocks gone: 1 of transformer" in text.replace("\\", "")
    assert "heads: 1 of 4 went" in text
    assert '"ratio": 0.3' in text


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of huggingface_hub
def test_it_is_pushed_whole(small, monkeypatch) -> None:
    from huggingface_hub import constants

    card.write(small)
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        push_folder(small, "me/small")
        there = hub.repos["me/small"]
    assert {n: raw for n, raw in there.items() if n != ".gitattributes"} == files_of(small)
