"""`ditprune convert` and `ditprune mask` on the command line; other verbs on compact folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.cli.main import run
from folders import STEM, edit_tensors, files_of


@pytest.fixture(scope="module")
def compact(pruned_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compact") / "compact"
    assert run(["convert", str(pruned_once), "--to", "compact", "-o", str(out)]) == 0
    return out


def test_there_and_back(ditprune, pruned, tmp_path) -> None:
    small, again = tmp_path / "small", tmp_path / "again"
    code, out, _ = ditprune("convert", pruned, "--to", "compact", "-o", small)
    assert code == 0
    first, weights, last = out.splitlines()
    assert first.startswith("packed 21 of 21 targets: ")
    assert weights.startswith("weights: ")
    assert last == f"compact model: {small}"
    code, out, _ = ditprune("convert", small, "--to", "dense", "-o", again)
    assert code == 0
    assert out.splitlines()[-1] == f"dense model: {again}"
    assert files_of(again) == files_of(pruned)
    code, out, _ = ditprune("verify", small)
    assert code == 0
    assert out.endswith(f"{small}: every claim holds\n")


def test_layers_that_do_not_gain_are_named(ditprune, tiny_pipeline, tmp_path) -> None:
    words = ("--saliency", "magnitude", "--include", "*.to_q")
    assert ditprune("prune", tiny_pipeline, "-o", tmp_path / "out", *words)[0] == 0
    code, out, _ = ditprune("convert", tmp_path / "out", "--to", "compact", "-o", tmp_path / "c")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("stays dense: transformer_blocks.0.norm1.linear.weight (not sparse")
    assert "packed it would take 1.0" in lines[0]
    assert lines[8] == "… and 10 more"
    assert lines[9].startswith("packed 3 of 21 targets")


def test_a_model_that_is_not_sparse_is_refused(refused, tiny_pipeline, tmp_path) -> None:
    line = refused("convert", tiny_pipeline, "--to", "compact", "-o", tmp_path / "o", midway=True)
    assert "none of its 21 targets is sparse enough" in line


@pytest.mark.parametrize("verb", ["inspect", "prune", "mask apply"])
def test_other_verbs_name_the_way_back(verb, refused, compact, statistics, tmp_path) -> None:
    out = ("-o", tmp_path / "out")
    mask = tmp_path / "mask"
    assert run(["mask", "extract", str(compact), "-o", str(mask)]) == 0
    rest = {
        "inspect": (), "prune": ("--saliency", "magnitude", *out),
        "mask apply": (mask, *out),
    }  # fmt: skip
    line = refused(*verb.split(), compact, *rest[verb])
    assert "its weights are compact; convert it first: `ditprune convert FOLDER --to dense" in line


def test_a_compact_model_is_evaluated_as_the_dense_one_it_came_from(
    ditprune, compact, pruned, tiny_pipeline, tmp_path
) -> None:
    words = ("--num-images", 4, "--num-held-out", 4, "--num-inference-steps", 2, "-o", tmp_path)
    code, _, err = ditprune("evaluate", tiny_pipeline, pruned, compact, *words)
    assert code == 0, err
    _, dense, small = json.loads((tmp_path / "results.json").read_text())["models"]
    assert small["metrics"]["ssim"]["value"] < 1
    assert small["metrics"] == dense["metrics"]
    assert small["error_by_timestep"] == dense["error_by_timestep"]
    assert small["accounting"]["num_nonzero"] == dense["accounting"]["num_nonzero"]
    assert folder_fingerprints(compact / "transformer") == folder_fingerprints(
        pruned / "transformer"
    )
    shards = compact.glob("transformer/*.safetensors")
    assert small["accounting"]["size_bytes"] == sum(file.stat().st_size for file in shards)
    assert small["accounting"]["size_bytes"] < dense["accounting"]["size_bytes"]


def test_a_compact_model_is_timed(ditprune, compact) -> None:
    words = ("--json", "--time-limit", 0.01)
    found = json.loads(ditprune("bench", compact, *words)[1])
    assert [row["sparsity"] for row in found["layers"]] == [0.5] * 4
    assert found["is_compact"]
    assert found["steps"]["transformer"]["memory_bytes"]["dense_fp32"] > found["size_bytes_on_disk"]
    assert "compact; running sparse" in ditprune("bench", compact, "--time-limit", 0.01)[1]


def test_a_mask_is_taken_applied_and_checked(ditprune, pruned, tiny_pipeline, tmp_path) -> None:
    mask, out = tmp_path / "mask.safetensors", tmp_path / "out"
    code, text, _ = ditprune("mask", "extract", pruned, "-o", mask)
    assert code == 0
    assert text.startswith("mask of 55,296 weights: ")
    code, text, _ = ditprune("mask", "apply", tiny_pipeline, mask, "--check")
    assert code == 1
    assert text.splitlines()[-1].endswith(": 27,648 of 27,648 zeros of the mask are filled in")
    code, text, _ = ditprune("mask", "apply", tiny_pipeline, mask, "-o", out)
    assert code == 0
    assert text.startswith("27,648 of 55,296 weights of 21 targets are zeros")
    assert ditprune("verify", out)[0] == 0
    code, text, _ = ditprune("mask", "apply", out, mask, "--check")
    assert code == 0
    name = "transformer_blocks.1.attn1.to_q"
    file = shutil.copytree(out, tmp_path / "fused") / "transformer" / f"{STEM}.safetensors"
    edit_tensors(file, lambda t: t[f"{name}.weight"].copy_(torch.ones(32, 32)))
    code, text, _ = ditprune("mask", "apply", tmp_path / "fused", mask, "--check")
    assert code == 1
    assert f"{name}: 512 of 512 zeros filled in (100.00%)" in text.splitlines()
    assert sum(" 0 of " in line for line in text.splitlines()) == 20


def test_options_of_masks_that_would_not_act_are_refused(refused, pruned, tmp_path) -> None:
    mask = tmp_path / "mask"
    assert run(["mask", "extract", str(pruned), "-o", str(mask)]) == 0
    for rest, match in (
        ((), "pass -o OUT, or --check"),
        (("--check", "-o", tmp_path / "out"), "leave --out and --overwrite out"),
        (("--check", "--overwrite"), "leave --out and --overwrite out"),
    ):
        assert match in refused("mask", "apply", pruned, mask, *rest)
    assert "exists" in refused("mask", "extract", pruned, "-o", mask)
