"""A pipeline of two denoisers: each is pruned by its own plan, and OUT appears once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ditprune
from ditprune.checkpoints.locate import locate
from ditprune.errors import ModelError, StatisticsError
from ditprune.method.words import build
from ditprune.pruning import loop as prune_module
from ditprune.pruning.job import open_jobs, plan_jobs
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.verify import false_claims
from folders import (
    STEM,
    add_denoiser,
    edit_json,
    edit_tensors,
    files_of,
    save_pipeline,
    shards_of,
    tensors_on_disk,
)

FIRST, SECOND = "transformer", "transformer_2"
NAME = "transformer_blocks.1.attn1.to_q"


@pytest.fixture(scope="module")
def model(tiny_dit, tmp_path_factory) -> Path:
    """The second denoiser has other weights, in several shards."""
    folder = save_pipeline(tiny_dit(0), tmp_path_factory.mktemp("two") / "model")
    add_denoiser(folder, tiny_dit(1), SECOND, max_shard_size="60KB")
    return folder


@pytest.fixture(scope="module")
def stats(tiny_dit, batches) -> dict[str, ditprune.Statistics]:
    denoisers = {FIRST: tiny_dit(0), SECOND: tiny_dit(1)}
    return {
        name: ditprune.calibrate(one, batches(one, seed=seed))
        for seed, (name, one) in enumerate(denoisers.items())
    }


@pytest.fixture(scope="module")
def pruned(model, stats) -> Path:
    """Never changed by a test."""
    out = model.parent / "out"
    prune_checkpoint(locate(str(model)), out, stats, build())
    return out


def test_each_is_pruned_as_it_would_be_alone(
    model, stats, pruned, tiny_dit, tmp_path, same_bits
) -> None:
    outcomes = prune_checkpoint(locate(str(model)), tmp_path / "out", stats, build())
    assert list(outcomes) == [FIRST, SECOND]
    for seed, (name, outcome) in enumerate(outcomes.items()):
        denoiser = tiny_dit(seed)
        assert outcome == ditprune.prune_(denoiser, stats[name])
        on_disk = tensors_on_disk(pruned / name)
        for key, tensor in denoiser.named_parameters():
            same_bits(on_disk[key], tensor)
    assert files_of(tmp_path / "out") == files_of(pruned)


def test_everything_else_is_copied(model, pruned) -> None:
    before, after = files_of(model), files_of(pruned)
    made = {f"{FIRST}/ditprune.json", f"{SECOND}/ditprune.json", "README.md"}
    assert after.keys() == before.keys() | made
    changed = {name for name in before if before[name] != after[name]}
    assert {name.split("/")[0] for name in changed} == {FIRST, SECOND}
    assert all(name.endswith(".safetensors") for name in changed)


def test_older_weights_of_either_stay_behind(model, stats, tmp_path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    for name in (FIRST, SECOND):
        (folder / name / f"{STEM}.fp16.safetensors").write_bytes(b"dense")
    prune_checkpoint(locate(str(folder)), tmp_path / "out", stats, build())
    assert not list((tmp_path / "out").rglob("*fp16*"))


def test_each_manifest_is_of_its_denoiser(pruned) -> None:
    claims = {
        name: json.loads((pruned / name / "ditprune.json").read_text(encoding="utf-8"))
        for name in (FIRST, SECOND)
    }
    prints = {claim["base"]["fingerprint"] for claim in claims.values()}
    assert len(prints) == 2
    assert len(claims[SECOND]["base"]["headers_sha256"]) > 2
    assert claims[FIRST]["recipe"] == claims[SECOND]["recipe"]


def test_the_plans_are_those_of_each(model, stats) -> None:
    plans = plan_jobs(open_jobs(locate(str(model)), stats, build()))
    assert list(plans) == [FIRST, SECOND]
    g_out = {name: plan.targets[NAME].g_out for name, plan in plans.items()}
    assert g_out[FIRST] != g_out[SECOND]


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_denoiser_without_statistics_is_named(name, model, stats, tmp_path) -> None:
    one = {other: s for other, s in stats.items() if other != name}
    with pytest.raises(StatisticsError, match=f"none of the denoiser '{name}', only of"):
        prune_checkpoint(locate(str(model)), tmp_path / "out", one, build())
    prune_checkpoint(locate(str(model)), tmp_path / "out", one, build(saliency="magnitude"))
    assert list(false_claims(locate(str(tmp_path / "out")))) == []


def test_swapped_statistics_are_refused(model, stats, tmp_path) -> None:
    swapped = {FIRST: stats[SECOND], SECOND: stats[FIRST]}
    with pytest.raises(StatisticsError, match="made from other weights"):
        prune_checkpoint(locate(str(model)), tmp_path / "out", swapped, build())


def test_one_of_them_alone_takes_its_own_or_the_only_statistics(model, stats, tmp_path) -> None:
    alone = locate(str(model / SECOND))
    prune_checkpoint(alone, tmp_path / "out", {"whatever": stats[SECOND]}, build())
    both = {"a": stats[FIRST], "b": stats[SECOND]}
    prune_checkpoint(alone, tmp_path / "b", both, build())
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    for file in files:
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    first = {"a": stats[FIRST], "b": stats[FIRST]}
    with pytest.raises(StatisticsError, match="a, b, and none of them was made from these"):
        prune_checkpoint(alone, tmp_path / "c", first, build())


@pytest.mark.parametrize("after", [10, 30])
def test_an_interrupt_in_either_is_gone_on_with(
    after, model, stats, pruned, tmp_path, monkeypatch
) -> None:
    original, calls = prune_module.prune_weight_, [0]

    def stop(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == after:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(prune_module, "prune_weight_", stop)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(locate(str(model)), tmp_path / "out", stats, build())
    prune_checkpoint(locate(str(model)), tmp_path / "out", stats, build())
    assert calls[0] == 42 + 1
    assert files_of(tmp_path / "out") == files_of(pruned)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def flip(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        flat = tensors[f"{NAME}.weight"].view(-1).view(torch.int32)
        flat[flat.nonzero()[0]] ^= 1

    edit_tensors(holder(folder), change)


def fill(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        flat = tensors[f"{NAME}.weight"].view(-1)
        flat[(flat == 0).nonzero()[0]] = 0.25

    edit_tensors(holder(folder), change)


def holder(folder: Path) -> Path:
    """The shard with the weight that is spoilt."""
    index = folder / f"{STEM}.safetensors.index.json"
    if not index.exists():
        return folder / f"{STEM}.safetensors"
    return folder / json.loads(index.read_text(encoding="utf-8"))["weight_map"][f"{NAME}.weight"]


def swap_shards(folder: Path) -> None:
    first, second = shards_of(folder)[:2]
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def edit_manifest(folder: Path) -> None:
    edit_json(folder / "ditprune.json", lambda claims: claims["totals"].update(num_pruned=1))


CORRUPTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (flip, f"{NAME}: its bytes are not those that were written"),
    "one zero too few": (fill, f"{NAME}: 511 zeros on disk, 512 claimed"),
    "swapped shards": (swap_shards, "the weights are not those that were written: "),
    "an edited manifest": (edit_manifest, "totals: num_pruned is 1"),
    "no manifest": (lambda folder: (folder / "ditprune.json").unlink(), "no ditprune.json"),
    "another config": (
        lambda folder: edit_json(folder / "config.json", lambda c: c.update(norm_eps=1e-3)),
        "config.json: is not the dense model's",
    ),
}


@pytest.mark.parametrize("name", [FIRST, SECOND])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_corruption_is_told_with_its_denoiser(name, corruption, pruned, tmp_path) -> None:
    spoil, claim = CORRUPTIONS[corruption]
    if corruption == "swapped shards" and name == FIRST:
        pytest.skip("it has one")
    out = Path(shutil.copytree(pruned, tmp_path / "out"))
    assert list(false_claims(locate(str(out)))) == []
    spoil(out / name)
    lines = list(false_claims(locate(str(out))))
    assert any(line.startswith(f"{name}: {claim}") for line in lines), lines
    assert all(line.startswith((f"{name}: ", f"{name}/")) for line in lines), lines


def test_denoisers_that_were_swapped_are_told(pruned, tmp_path) -> None:
    out = Path(shutil.copytree(pruned, tmp_path / "out"))
    manifests = [out / name / "ditprune.json" for name in (FIRST, SECOND)]
    contents = [file.read_bytes() for file in manifests]
    for file, content in zip(manifests, reversed(contents), strict=True):
        file.write_bytes(content)
    lines = list(false_claims(locate(str(out))))
    for name in (FIRST, SECOND):
        assert f"{name}: {NAME}: its bytes are not those that were written" in lines


def test_a_dense_pipeline_is_refused(model) -> None:
    with pytest.raises(ModelError, match=r"no ditprune\.json"):
        list(false_claims(locate(str(model))))
