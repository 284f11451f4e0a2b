"""A folder is updated with one block in memory: as in memory, resumable, within a limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ditprune
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import load_calibration_set, save_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.update import folder as whole
from ditprune.pruning.update.blockwise import room
from ditprune.pruning.update.folder import Source
from ditprune.pruning.verify import false_claims
from folders import files_of, tensors_on_disk

FAST: dict[str, Any] = {"preset": "fast", "sparsity": 0.6}
RECIPES: list[dict[str, Any]] = [
    FAST, {"preset": "fast", "pattern": "2:4"},
    {"reconstruction": "admm", "mask": "reconstruction", "allocation": "owl"},
]  # fmt: skip
FREE = 2_000_000  # bytes; more than the model takes
ALONE = 20_000  # bytes, so that Grams are not kept from the way back
pytestmark = pytest.mark.filterwarnings("ignore:.*layers see fewer than")


@pytest.fixture(scope="module")
def source(tiny_dit, batches, tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("calls") / "set"
    calls = [Call.of(batch) for batch in batches(tiny_dit())]
    save_calibration_set(calls, {"seed": 0}, folder)
    return Source(load_calibration_set(folder), Placement())


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No denoiser is loaded whole."""

    def refuse(*_args: object) -> None:
        raise AssertionError("loaded whole")

    monkeypatch.setattr(whole, "load_denoiser", refuse)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("max_gram_bytes", [None, ALONE], ids=["kept", "twice"])
@pytest.mark.parametrize("words", RECIPES, ids=str)
def test_a_folder_gets_what_memory_gets_with_a_block_at_a_time(
    words, max_gram_bytes, source, tiny_pipeline, tiny_stats, tmp_path, same_bits, monkeypatch
) -> None:
    """Hidden states on the disk change nothing."""
    monkeypatch.setattr(
        room.psutil, "virtual_memory", lambda: type("", (), {"available": 0, "total": 2**40})()
    )
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    given = replace(source, max_gram_bytes=max_gram_bytes)
    outcomes = prune_checkpoint(model, out, {"any": tiny_stats}, build(**words), source=given)
    assert list(false_claims(locate(str(out)))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    denoiser = load_denoiser(model.denoisers["transformer"])
    calls = source.calibration_set.read(0)[0]
    done = ditprune.prune_(
        denoiser, tiny_stats, batches=calls, max_gram_bytes=max_gram_bytes, progress=False, **words
    )
    assert outcomes["transformer"].targets == done.targets
    tensors = tensors_on_disk(out / "transformer")
    for name, tensor in denoiser.state_dict().items():
        if name in tensors:
            same_bits(tensors[name], tensor)


class Stop:
    """Interrupts at a word of progress."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, what: str, done: int, total: int) -> None:
        if f"{what} {done}/{total}" == self.word:
            raise KeyboardInterrupt


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
    source, tiny_pipeline, tiny_stats, tmp_path
) -> None:
    """On the way back, between blocks, and when all of them are done; by the same command."""
    source = replace(source, max_gram_bytes=ALONE)

    def prune(out: Path, word: str) -> None:
        recipe, model = build(**FAST), locate(str(tiny_pipeline))
        prune_checkpoint(model, out, {"any": tiny_stats}, recipe, False, Stop(word), source)

    prune(tmp_path / "whole", "")
    stops = [f"{what} blocks {n}/3" for what in ("measuring", "updating") for n in (2, 3)]
    for word in stops:
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path / "out", word)
    prune(tmp_path / "out", "")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_block_that_is_done_is_not_done_again(
    source, tiny_pipeline, tiny_stats, tmp_path, monkeypatch
) -> None:
    from ditprune.pruning.update.blockwise import engine

    recipe, done = build(reconstruction="obs"), list[str]()
    update = engine.target_update

    def counted(change: Any, share: Any) -> Any:
        done.append(change.layer.target.name)
        return update(change, share)

    monkeypatch.setattr(engine, "target_update", counted)
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    stop = Stop("updating blocks 2/3")
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(model, out, {"any": tiny_stats}, recipe, False, stop, source)
    assert {name.split(".")[1] for name in done} == {"0", "1"}
    prune_checkpoint(model, out, {"any": tiny_stats}, recipe, source=source)
    assert len(done) == len(set(done)) == 21


def test_memory_that_no_block_fits_is_refused_before_work(
    tiny_pipeline, tiny_stats, tmp_path, batches, tiny_dit
) -> None:
    calls = [Call.of(batch) for batch in batches(tiny_dit())]
    with pytest.raises(RecipeError, match=r"max_memory=300 kB: .* block by block, and takes .*; a"):
        ditprune.prune(
            tiny_pipeline, tmp_path / "out", tiny_stats, batches=calls, max_memory="300KB", **FAST
        )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_hidden_states_is_refused_before_work(
    source, tiny_pipeline, tiny_stats, tmp_path, monkeypatch
) -> None:
    model = locate(str(tiny_pipeline))
    monkeypatch.setattr(room, "state_bytes", lambda *_args: FREE)
    monkeypatch.setattr(
        room.psutil, "virtual_memory", lambda: type("", (), {"available": 0, "total": 2**40})()
    )
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _place: type("", (), {"free": FREE})())
    with pytest.raises(RecipeError, match=r"the blocks give for the 6 rows .* 2 MB free; free som"):
        prune_checkpoint(model, tmp_path / "out", {"any": tiny_stats}, build(**FAST), source=source)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_runs_forwards_and_updates_in_float32(
    source, tiny_pipeline, tiny_stats, tmp_path
) -> None:
    """Close to float32, and other bits."""
    given = replace(source, placement=Placement(dtype=torch.bfloat16))
    errors = []
    for name, own in (("float32", source), ("bfloat16", given)):
        prune_checkpoint(
            locate(str(tiny_pipeline)), tmp_path / name, {"any": tiny_stats}, build(**FAST),
            source=own,
        )  # fmt: skip
        errors.append(tensors_on_disk(tmp_path / name / "transformer"))
    first, second = ({n: t for n, t in t.items() if t.ndim == 2} for t in errors)
    differences = [float((first[n] - second[n]).norm() / first[n].norm()) for n in first]
    assert 0 < max(differences) < 0.5
    assert all(tensor.dtype == torch.float32 for tensor in second.values())
