"""ditprune bench: what is timed, said and written; which side wins is not under test."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.cli.main import run
from ditprune.errors import RecipeError
from ditprune.reporting.load import check
from ditprune.runtime import swap
from ditprune.runtime.bench import step_times
from ditprune.runtime.bench.does_it_pay import together
from ditprune.runtime.bench.layer_times import verdict_of
from ditprune.runtime.bench.timed_layers import pruned_on_trial, trial_of
from folders import add_denoiser, files_of, save_denoiser
from invented_results import results

QUICK = ("--time-limit", 0.01)
SHAPES = {  # of the tiny DiT: (C_out, C_in) → layers of that shape that get its tokens
    (32, 32): 12, (128, 32): 3, (32, 128): 3, (192, 32): 3,
}  # fmt: skip


def found_by(ditprune: Any, *args: object) -> dict[str, Any]:
    code, out, err = ditprune("bench", *args, "--json", *QUICK)
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def half(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("half") / "out"
    args = ("prune", tiny_pipeline, "-o", out, "--saliency", "magnitude", "--granularity",
            "channel")  # fmt: skip
    assert run([str(arg) for arg in args]) == 0
    return out


def test_every_shape_is_timed_at_the_tokens_of_a_real_call(ditprune, half) -> None:
    before = files_of(half)
    found = found_by(ditprune, half)
    rows = {tuple(row["shape"]): row for row in found["layers"]}
    assert {shape: row["num_layers"] for shape, row in rows.items()} == SHAPES
    # Two rows of guidance, 16 tokens each; adaLN once a row.
    assert {shape: row["num_tokens"] for shape, row in rows.items()} == {
        shape: 2 if shape == (192, 32) else 32 for shape in SHAPES
    }
    for row in rows.values():
        assert row["sparsity"] == 0.5
        assert row["dense_fp32_ms"] > 0
        assert row["dense_bf16_ms"] > 0
        assert isinstance(row["pays"], bool)
        num_weights = row["shape"][0] * row["shape"][1]
        assert row["size_bytes"]["dense_fp32"] == 4 * num_weights
        assert row["size_bytes"]["dense_bf16"] == 2 * num_weights
    assert found["pruned_in_memory"] is False
    assert any("4:8 and unstructured zeros have no GPU kernel" in note for note in found["notes"])
    assert files_of(half) == before


def test_a_whole_step_is_timed_with_its_memory(ditprune, half) -> None:
    step = found_by(ditprune, half)["steps"]["transformer"]
    assert step["dense_fp32_ms"] > 0
    assert step["dense_bf16_ms"] > 0
    memory = step["memory_bytes"]
    assert memory["dense_bf16"] < 0.6 * memory["dense_fp32"]
    for path in ("sparse_fp32", "sparse_bf16"):  # by the clock, either is there or says why
        assert (step[f"{path}_ms"] is None) == (path in step["reasons"])


def test_choosing_the_layers_of_a_step_is_within_the_limit(ditprune, half, monkeypatch) -> None:
    limits: list[float] = []

    def sparsify_(*args: Any, limit_s: float) -> Any:
        limits.append(limit_s)
        return swap.sparsify_(*args, limit_s=limit_s)

    monkeypatch.setattr(step_times, "sparsify_", sparsify_)
    found_by(ditprune, half)
    assert limits == [QUICK[1] / 2 / 4] * 2  # half of it for layers, half of that for the step


def test_why_no_layer_of_a_step_runs_sparse() -> None:
    reasons = ["its weight is torch.float32"] * 2 + ["too few zeros to be smaller"]
    decisions = [swap.Decision((1, 1), 0.5, {}, {}, 4, reason) for reason in reasons]
    timed = [swap.Decision((1, 1), 0.5, {2: 1.0}, {2: 2.0}, 4, f"0.{n}× as fast") for n in range(3)]
    assert step_times.why_dense([*decisions, *timed]) == (
        "no layer runs sparse: not faster (3 of 6 layers); its weight is torch.float32 (2 of 6 "
        "layers); too few zeros to be smaller (1 of 6 layers)"
    )


def test_a_dense_model_is_pruned_in_memory_only(ditprune, tiny_pipeline) -> None:
    before = files_of(tiny_pipeline)
    for args, sparsity in ((("--sparsity", 0.75), 0.75), (("--pattern", "2:4"), 0.5)):
        found = found_by(ditprune, tiny_pipeline, *args, "--num-tokens", 8)
        assert {row["sparsity"] for row in found["layers"]} == {sparsity}
        assert found["pruned_in_memory"] is True
    assert files_of(tiny_pipeline) == before


def test_given_tokens_need_no_pipeline_and_give_no_step(ditprune, half) -> None:
    found = found_by(ditprune, half / "transformer", "--num-tokens", 77)
    tokens = {tuple(row["shape"]): row["num_tokens"] for row in found["layers"]}
    assert tokens[(32, 32)] == 77
    assert tokens[(192, 32)] == 2
    assert "gives no call" in found["steps"]["transformer"]["reason"]


def test_a_model_larger_than_memory_is_timed_layer_by_layer(ditprune, half) -> None:
    found = found_by(ditprune, half, "--max-memory", "300KB")
    assert len(found["layers"]) == len(SHAPES)
    assert "its layers were timed one at a time" in found["steps"]["transformer"]["reason"]


def test_layers_of_two_denoisers_bear_their_names(ditprune, tiny_dit, half, tmp_path) -> None:
    args = ("--num-tokens", 8)
    single = found_by(ditprune, half, *args)["layers"]
    assert not any(row["layer"].startswith("transformer: ") for row in single)
    both = Path(shutil.copytree(half, tmp_path / "both"))
    add_denoiser(both, tiny_dit(1))
    rows = found_by(ditprune, both, *args)["layers"]
    assert [row["layer"].split(": ")[0] for row in rows] == (
        ["transformer"] * len(SHAPES) + ["transformer_2"] * len(SHAPES)
    )


def test_what_is_printed(ditprune, tiny_pipeline) -> None:
    code, out, err = ditprune("bench", tiny_pipeline, "--sparsity", 0.5, *QUICK)
    assert code == 0, err
    assert "transformer_blocks.0.attn1.to_q and 11 more" in out
    assert re.search(r"32×32 +32 +50%", out)
    assert re.search(
        r"^all layers: (pays|does not pay); dense float32 .* best setting: ", out, re.M
    )
    assert re.search(r"^a whole call: (pays|does not pay); dense float32 ", out, re.M)
    assert "running sparse changes no file" in out
    assert "4:8 and unstructured zeros have no GPU kernel" in out
    assert "…" not in out


def test_the_table_is_added_to_results(ditprune, tiny_pipeline, tmp_path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"format": 2, "models": [], "later": 1}), encoding="utf-8")
    args = ("--sparsity", 0.5, "--num-tokens", 8, "-o", file)
    found = found_by(ditprune, tiny_pipeline, *args)
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept == {"format": 2, "models": [], "later": 1, "bench": found}
    assert check(results() | {"bench": found}, "here")["bench"] == found


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ([], "its layers have no zeros to skip; pass --sparsity 0.5"),
        (["--sparsity", 1.5], "--sparsity 1.5: expected the removed share, 0 ≤ sparsity < 1"),
        (["--sparsity", 0.5, "--pattern", "2:4"], "--sparsity and --pattern exclude each other"),
        (["--pattern", "2of4"], "2of4"),
        (["--sparsity", 0.5, "--num-tokens", 0], "--num-tokens 0"),
        (["--sparsity", 0.5, "--num-tokens", 4, "--height", 8], "excludes --height and --width"),
        (["--sparsity", 0.5, "--num-tokens", 4, "--pipeline-option", "num_frames=5"],
         "--num-tokens: excludes --height and --width and --pipeline-option"),
        (["--sparsity", 0.5, "--time-limit", 0], "--time-limit 0"),
        (["--sparsity", 0.5, "--backend", "gpu"], "--backend 'gpu'"),
        (["--sparsity", 0.5, "--backend", "cpu", "--device", "mps"], "torch finds none"),
        (["--sparsity", 0.5, "--backend", "semi-structured", "--device", "cpu"],
         "runs on cuda, not on --device cpu"),
        (["--sparsity", 0.5, "--out", "nowhere.json"], "no such file; expected a results.json"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_timed_is_refused(args, match, ditprune, tiny_pipeline) -> None:
    code, out, err = ditprune("bench", tiny_pipeline, *args, *([] if "--time-limit" in args
                              else QUICK))  # fmt: skip
    last = err.splitlines()[-1]
    assert (code, out) == (2, "")
    assert last.startswith("error: ")
    assert match in last


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_backend_that_is_not_here_is_refused(ditprune, tiny_pipeline) -> None:
    args = ("bench", tiny_pipeline, "--sparsity", 0.5, "--backend", "semi-structured")
    assert "semi-structured: torch finds no CUDA device" in ditprune(*args)[2]


def test_a_pruned_model_is_not_pruned_again_and_a_bare_one_needs_tokens(
    ditprune, half, tmp_path, tiny_dit
) -> None:
    assert "are zeros already" in ditprune("bench", half, "--sparsity", 0.5)[2]
    bare = save_denoiser(tiny_dit(), tmp_path / "bare")
    said = ditprune("bench", bare, "--sparsity", 0.5)[2]
    assert "is a bare denoiser" in said
    assert "--num-tokens" in said


def test_without_a_compiler_the_dense_side_is_timed_and_the_reason_said(
    ditprune, tiny_pipeline, monkeypatch, tmp_path
) -> None:
    from ditprune.runtime import build

    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load_kernel.cache_clear()
    found = found_by(ditprune, tiny_pipeline, "--sparsity", 0.5, "--num-tokens", 8)
    build.load_kernel.cache_clear()
    assert "no C++ compiler" in found["notes"][0]
    for row in found["layers"]:
        assert (row["sparse_ms"], row["pays"]) == (None, False)
        assert row["reasons"]["sparse_fp32"] == "no backend runs here"


def test_it_pays_where_the_fastest_sparse_beats_the_fastest_dense() -> None:
    times = {"dense_fp32": 4.0, "dense_bf16": 2.0, "sparse_fp32": 2.0, "sparse_bf16": 1.0}
    one = verdict_of(times)
    assert (one["pays"], one["best"], one["sparse_ms"]) == (True, "sparse_bf16", 1.0)
    assert (one["gain_fp32"], one["gain_bf16"]) == (2.0, 2.0)
    two = verdict_of({**times, "sparse_bf16": 3.0})
    assert (two["pays"], two["best"]) == (False, "dense_bf16")
    assert verdict_of({**times, "sparse_bf16": 1.95})["pays"] is False  # within the noise
    assert verdict_of({"dense_fp32": 1.0, "dense_bf16": 1.0})["sparse_ms"] is None


def test_all_layers_together_take_the_faster_side_of_each() -> None:
    fast = {"num_layers": 2, "dense_fp32_ms": 4, "dense_bf16_ms": 4, "sparse_fp32_ms": 1,
            "sparse_bf16_ms": None}  # fmt: skip
    slow = {**fast, "num_layers": 1, "sparse_fp32_ms": 9}
    one = together([fast, slow])
    assert (one["dense_fp32_ms"], one["sparse_fp32_ms"], one["sparse_bf16_ms"]) == (12, 6, None)
    assert one["pays"] is True


def test_magnitude_in_memory_keeps_the_largest_of_each_channel_or_group() -> None:
    weight = torch.tensor([[1.0, -4, 3, 2, 8, 7, 6, 5]])
    channel, pattern = trial_of(0.75, None), trial_of(None, "2:4")
    assert channel is not None
    assert pattern is not None
    assert pruned_on_trial(weight, channel).tolist() == [[0, 0, 0, 0, 8, 7, 0, 0]]
    assert pruned_on_trial(weight, pattern).tolist() == [[0, -4, 3, 0, 8, 7, 0, 0]]
    with pytest.raises(RecipeError, match=r"needs input channels divisible by 4"):
        pruned_on_trial(weight[:, :6], pattern)
