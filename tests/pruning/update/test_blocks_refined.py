"""Blocks are trained one by one: it helps, it is judged, it resumes, and a tail follows."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ditprune
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import load_calibration_set, save_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import predicted_noise, relative_error, run_call
from ditprune.errors import RecipeError
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.update.blockwise.gains import BlockGains, gains_of, weighted_square
from ditprune.pruning.update.blockwise.results import FolderResults, WrittenBlocks
from ditprune.pruning.update.blockwise.run import BlockRefined, BlockUpdates
from ditprune.pruning.update.folder import Source
from ditprune.pruning.update.update import RefinementResult
from ditprune.pruning.verify import false_claims
from ditprune.reporting.told import refined_lines
from folders import files_of, tensors_on_disk

pytestmark = pytest.mark.filterwarnings("ignore:.*layers see fewer than")
ALONE = 20_000  # bytes, so that Grams are not kept from the way back


def words(**constants: Any) -> dict[str, Any]:
    settings = {"num_steps": 24, "batch_size": 4, "tail": "none", **constants}
    return {"preset": "best", "refinement": {"name": "distill", **settings}}


@pytest.fixture(scope="module")
def calls(tiny_dit, batches) -> list[Call]:
    return [Call.of(batch) for batch in batches(tiny_dit(), n=24)]


@pytest.fixture(scope="module")
def source(calls, tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("calls") / "set"
    save_calibration_set(calls, {"seed": 0}, folder)
    return Source(load_calibration_set(folder), Placement(), ALONE)


def error(denoiser: Any, dense: Any, calls: list[Call]) -> float:
    def noise(model: Any, call: Call) -> Tensor:
        return predicted_noise(run_call(model, call), 4)

    return relative_error((noise(denoiser, call), noise(dense, call)) for call in calls)


def pruned(dense: Any, stats: Any, calls: list[Call], **given: Any) -> tuple[Any, Any]:
    denoiser = copy.deepcopy(dense)
    outcome = ditprune.prune_(denoiser, stats, batches=calls, progress=False, **given)
    return denoiser, outcome


@pytest.mark.parametrize(
    ("share", "inputs"),
    [({"sparsity": 0.6}, "pruned"), ({"pattern": "2:4"}, "pruned"), ({"pattern": "2:4"}, "dense")],
    ids=str,
)
def test_training_blocks_one_by_one_lowers_the_error(
    tiny_dit, tiny_stats, calls, batches, share, inputs
) -> None:
    """On calls that were not trained on; the count is exact, and what is dense stays so."""
    dense = tiny_dit()
    others = [Call.of(batch) for batch in batches(dense, n=16, seed=1)]
    fast, _ = pruned(dense, tiny_stats, calls, preset="fast", **share)
    best, outcome = pruned(dense, tiny_stats, calls, **words(inputs=inputs, num_steps=120), **share)
    assert error(best, dense, others) < 0.98 * error(fast, dense, others)
    assert outcome.refined["is_taken"]
    assert outcome.refined["error_after"] < outcome.refined["error_before"]
    expected = share.get("sparsity", 0.5)
    assert outcome.sparsity == pytest.approx(expected, abs=1e-4)
    zeros = {name: (best.get_parameter(f"{name}.weight") == 0).sum() for name in outcome.targets}
    assert {n: int(count) for n, count in zeros.items()} == {
        n: target.num_zero for n, target in outcome.targets.items()
    }


def test_training_that_does_not_help_is_dropped_and_told(tiny_dit, tiny_stats, calls) -> None:
    dense, recipe = tiny_dit(), words(learning_rate=30.0)
    kept_as_were, outcome = pruned(dense, tiny_stats, calls, sparsity=0.6, **recipe)
    closed, _ = pruned(dense, tiny_stats, calls, sparsity=0.6, preset="fast", max_gram_bytes=ALONE)
    assert outcome.refined["left_blocks"] == [f"transformer_blocks.{i}" for i in range(3)]
    assert not outcome.refined["is_taken"]
    for name in outcome.targets:
        weight = closed.get_parameter(f"{name}.weight")
        torch.testing.assert_close(kept_as_were.get_parameter(f"{name}.weight"), weight)
    assert any("refinement dropped" in line for line in refined_lines(outcome.refined))
    some = {**outcome.refined, "is_taken": True, "left_blocks": ["blocks.1", "blocks.2"]}
    assert any("not refined: blocks.1 and 1 more block" in line for line in refined_lines(some))


def test_a_tail_trains_all_together_after_the_blocks(tiny_dit, tiny_stats, calls) -> None:
    seen: list[str] = []

    def tell(what: str, done: int, total: int) -> None:
        seen.append(f"{what} {done}/{total}")

    denoiser = tiny_dit()
    recipe = words(tail="auto")
    ditprune.prune_(denoiser, tiny_stats, 0.6, batches=calls, progress=tell, **recipe)
    assert (
        seen.index("updating blocks 3/3") < seen.index("refining 1/6") < seen.index("refining 6/6")
    )
    assert not any(line.startswith("refining") and "/6" not in line for line in seen)


def test_a_folder_gets_what_memory_gets(
    source, tiny_pipeline, tiny_stats, tmp_path, same_bits, calls
) -> None:
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    recipe = build(sparsity=0.6, **words(tail="auto"))
    outcomes = prune_checkpoint(model, out, {"any": tiny_stats}, recipe, source=source)
    assert list(false_claims(locate(str(out)))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    denoiser = load_denoiser(model.denoisers["transformer"])
    done = ditprune.prune_(
        denoiser, tiny_stats, batches=calls, max_gram_bytes=ALONE, progress=False, recipe=recipe
    )
    assert outcomes["transformer"].targets == done.targets
    assert outcomes["transformer"].refined == done.refined
    tensors = tensors_on_disk(out / "transformer")
    for name, tensor in denoiser.state_dict().items():
        if name in tensors:
            same_bits(tensors[name], tensor)


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_a_refinement_that_is_stopped_goes_on_to_the_same_bytes(
    source, tiny_pipeline, tiny_stats, tmp_path, inputs
) -> None:
    """Between blocks, and in the tail."""
    recipe = build(sparsity=0.6, **words(inputs=inputs, num_steps=8, tail="auto"))

    def prune(out: Path, word: str) -> None:
        def stop(what: str, done: int, total: int) -> None:
            if f"{what} {done}/{total}" == word:
                raise KeyboardInterrupt

        model = locate(str(tiny_pipeline))
        prune_checkpoint(model, out, {"any": tiny_stats}, recipe, False, stop, source)

    prune(tmp_path / "whole", "")
    for word in ("updating blocks 2/3", "refining 1/2"):
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path / "out", word)
    prune(tmp_path / "out", "")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_gains_tell_channels_and_moments_apart(tiny_dit) -> None:
    """Two calls at two timesteps; the gradient of the first is twice the second's."""

    def call(timestep: float) -> Call:
        sample, times = torch.zeros(2, 4, 8, 8), torch.full((2,), timestep)
        return Call((), {"hidden_states": sample, "timestep": times})

    channels_C = torch.tensor([1.0, 2.0, 3.0])
    gradients = [[factor * channels_C.expand(2, 5, 3)] for factor in (2.0, 1.0)]
    gains = gains_of(tiny_dit(), [call(10.0), call(900.0)], gradients)
    assert gains is not None
    torch.testing.assert_close(gains.channels[0], channels_C.square() * 3 / 14)
    torch.testing.assert_close(gains.factors, torch.tensor([1.6, 0.4]))
    torch.testing.assert_close(
        gains.at(torch.tensor([0.0, 400.0, 500.0])), gains.factors[[0, 0, 1]]
    )
    again = BlockGains.from_tensors(gains.tensors())
    assert all(torch.equal(a, b) for a, b in zip(again.channels, gains.channels, strict=True))
    got = weighted_square(gains, torch.tensor([1.0, 3.0]), [torch.ones(2, 5, 3)])
    torch.testing.assert_close(got, 5 * gains.channels[0].sum() * 4)
    assert gains_of(tiny_dit(), [call(1.0)], [[None]]) is None


def test_a_block_that_adds_nothing_is_left(tiny_dit, tiny_stats, calls) -> None:
    """Its relative error is none; an untrained gate of zero gives such a block."""
    dense = tiny_dit()
    with torch.no_grad():
        for path in ("attn1.to_out.0", "ff.net.2"):
            layer = dense.transformer_blocks[1].get_submodule(path)
            layer.weight.zero_(), layer.bias.zero_()
    recipe = words(inputs="dense")
    stats = ditprune.calibrate(dense, calls)
    _, outcome = pruned(dense, stats, calls, sparsity=0.6, **recipe)
    assert "transformer_blocks.1" in outcome.refined["left_blocks"]
    errors = outcome.refined["error_before"], outcome.refined["error_after"]
    assert all(math.isfinite(error) for error in errors)


def test_training_that_ends_in_inf_is_told_in_a_file_too(tmp_path) -> None:
    lost = BlockRefined(False, 0.5, None)
    FolderResults(tmp_path, lambda *_: None).keep(3, BlockUpdates({}, {}, (), lost))
    assert WrittenBlocks(tmp_path).refined == {3: lost}
    told = RefinementResult.of_blocks({"blocks.3": lost})
    assert (told.is_taken, told.error_before, told.error_after) == (False, 0.5, None)
    better = RefinementResult.of_blocks({"a": lost, "b": BlockRefined(True, 0.3, 0.1)})
    assert (better.is_taken, better.error_after) == (True, pytest.approx(0.3))


@pytest.mark.parametrize("constants", [{"tail": "long"}, {"inputs": "both"}, {"tail": 3}], ids=str)
def test_names_that_stand_for_nothing_are_refused(constants) -> None:
    with pytest.raises(RecipeError, match=r"expected (auto or none|pruned or dense)"):
        build(**words(**constants))


def test_tail_is_a_word_of_its_own() -> None:
    assert build(preset="best", tail="none").refinement.tail == "none"
    with pytest.raises(RecipeError, match="takes no constants"):
        build(preset="fast", tail="none")
