"""Globs that say where the blocks are, from the calibration of a folder to its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ditprune.calibration.collect import calibrate_folder
from ditprune.calibration.sample import Sampling
from ditprune.checkpoints.calibration_set import load_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.statistics_file import read_statistics_file
from ditprune.denoiser.placement import Placement
from ditprune.errors import OutputError, TargetError
from ditprune.evaluation.claims import claims_of, dense_claims
from ditprune.method.distill import Distill
from ditprune.method.words import build, from_json
from ditprune.pruning import loop
from ditprune.pruning.job import open_jobs, run_identity
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.update import folder
from ditprune.pruning.update.folder import Source
from ditprune.pruning.verify import false_claims
from ditprune.targets.blocks import globs_of
from folders import files_of

BLOCKS = ("transformer_blocks.[01]", "proj_out_1")  # the last lies outside every block list
SAMPLING = Sampling(4, num_inference_steps=2, batch_size=4)


@pytest.fixture(scope="module")
def calibrated(tiny_pipeline, tmp_path_factory) -> Path:
    """A folder with the statistics and the calls."""
    folder = tmp_path_factory.mktemp("calibrated")
    calibrate_folder(
        locate(str(tiny_pipeline)), folder / "s", SAMPLING, set_folder=folder / "calls",
        blocks=BLOCKS,
    )  # fmt: skip
    return folder


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "transformer" / "ditprune.json").read_text(encoding="utf-8"))


def test_the_statistics_bring_them_to_the_manifest(tiny_pipeline, calibrated, tmp_path) -> None:
    model, stats = locate(str(tiny_pipeline)), read_statistics_file(calibrated / "s")
    assert stats["transformer"].blocks == BLOCKS
    prune_checkpoint(model, tmp_path / "out", stats, build())
    claims = manifest(tmp_path / "out")
    assert claims["recipe"]["blocks"] == list(BLOCKS)
    assert {target["block"] for target in claims["targets"].values()} == {
        "transformer_blocks.0", "transformer_blocks.1", "proj_out_1",
    }  # fmt: skip
    assert list(false_claims(locate(str(tmp_path / "out")))) == []
    again = from_json(claims["recipe"], "recipe")
    prune_checkpoint(model, tmp_path / "again", stats, again)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")
    tree = {"transformer": skeleton(model.denoisers["transformer"])}
    pruned = claims_of(locate(str(tmp_path / "out")), tree)
    assert "proj_out_1" not in dense_claims(tree).targets["transformer"]
    assert dense_claims(tree, [pruned]).targets["transformer"]["proj_out_1"]["shape"]


def test_a_stopped_run_that_updates_weights_goes_on(
    tiny_pipeline, calibrated, tmp_path, monkeypatch
) -> None:
    model, stats = locate(str(tiny_pipeline)), read_statistics_file(calibrated / "s")
    source = Source(load_calibration_set(calibrated / "calls"), Placement())
    recipe = build(sparsity=0.7, preset="best", refinement=Distill(num_steps=3), blocks=BLOCKS)
    prune_checkpoint(model, tmp_path / "whole", stats, recipe, source=source)
    assert list(false_claims(locate(str(tmp_path / "whole")))) == []
    assert len(manifest(tmp_path / "whole")["targets"]) == 2 * 7 + 1

    def stop(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "claims", stop)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(model, tmp_path / "out", stats, recipe, source=source)
    monkeypatch.setattr(folder, "update_targets", stop)  # done already
    prune_checkpoint(model, tmp_path / "out", stats, recipe, source=source)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    others = build(saliency="magnitude", blocks=BLOCKS[:1])
    found = build(saliency="magnitude")
    identities = [run_identity(model, open_jobs(model, None, r)) for r in (others, found)]
    assert identities[0] != identities[1]


def test_unfinished_calibration_of_other_blocks_is_not_gone_on_with(
    tiny_pipeline, calibrated, tmp_path, monkeypatch
) -> None:
    from ditprune.calibration import collect

    model = locate(str(tiny_pipeline))

    def stop(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collect, "observe_set", stop)
        with pytest.raises(KeyboardInterrupt):
            calibrate_folder(model, tmp_path / "s", SAMPLING, blocks=BLOCKS)
    with pytest.raises(OutputError, match="blocks"):
        calibrate_folder(model, tmp_path / "s", SAMPLING, blocks=BLOCKS[:1])
    with pytest.raises(OutputError, match="blocks"):
        calibrate_folder(model, tmp_path / "s", SAMPLING)
    calibrate_folder(model, tmp_path / "s", SAMPLING, blocks={"transformer": BLOCKS})
    found = read_statistics_file(tmp_path / "s")["transformer"]
    assert (found.blocks, found.fingerprints) == (
        BLOCKS, read_statistics_file(calibrated / "s")["transformer"].fingerprints,
    )  # fmt: skip


def test_globs_by_denoiser_need_one_for_each() -> None:
    assert globs_of({"a": ["x.*"]}, "a") == ("x.*",)
    with pytest.raises(TargetError, match=r"none for the denoiser 'b'.*add b=GLOB"):
        globs_of({"a": ["x.*"]}, "b")


def test_the_verbs_take_them(ditprune, tiny_pipeline, calibrated, tmp_path) -> None:
    args = ("--num-samples", 2, "--num-inference-steps", 1, "--blocks")
    file, globs = tmp_path / "s", ("transformer=transformer_blocks.1", "--blocks", "proj_out_2")
    code, _, err = ditprune("calibrate", tiny_pipeline, "-o", file, *args, *globs)
    assert code == 2
    assert "expected DENOISER=GLOB" in err
    code, out, err = ditprune("calibrate", tiny_pipeline, "-o", file, *args, globs[0])
    assert code == 0, err
    assert read_statistics_file(file)["transformer"].blocks == ("transformer_blocks.1",)
    code, out, err = ditprune("calibrate", tiny_pipeline, "-o", tmp_path / "t", *args, "layer.*",
                              "--dry-run")  # fmt: skip
    assert code == 2
    assert "--blocks 'layer.*' matches none" in err

    assert ditprune("prune", tiny_pipeline, "-o", tmp_path / "out", "--statistics", file)[0] == 0
    quick = ("--num-tokens", 4, "--time-limit", 0.01, "--json")
    code, out, err = ditprune("bench", tmp_path / "out", *quick)
    assert code == 0, err
    rows = json.loads(out)["layers"]
    assert all(row["layer"].startswith("transformer_blocks.1.") for row in rows)
    assert sum(row["num_layers"] for row in rows) == 7
    trial = ("--sparsity", 0.5, "--blocks", "proj_out_1")
    code, out, err = ditprune("bench", tiny_pipeline, *quick, *trial)
    assert code == 0, err
    assert [row["layer"] for row in json.loads(out)["layers"]] == ["proj_out_1"]


def test_convert_packs_the_targets_of_the_manifest(ditprune, tiny_pipeline, tmp_path) -> None:
    recipe = build(saliency="magnitude", sparsity=0.9, blocks="proj_out_1")
    prune_checkpoint(locate(str(tiny_pipeline)), tmp_path / "out", None, recipe)
    code, _, err = ditprune("convert", tmp_path / "out", "--to", "compact", "-o", tmp_path / "c")
    assert code == 0, err
    assert list(false_claims(locate(str(tmp_path / "c")))) == []
