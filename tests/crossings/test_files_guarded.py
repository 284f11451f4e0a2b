"""What a verb may write, and what it reads: never a file of others, never half old and half new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ditprune as api
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import load_calibration_set, save_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, OutputError
from ditprune.method.words import build
from ditprune.pruning import loop
from ditprune.pruning.convert import to_compact
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.update.folder import Source
from ditprune.pruning.verify import false_claims
from ditprune.writing.lock import lock_of, locked
from folders import add_denoiser, edit_tensors, files_of, save_pipeline, shards_of

Run = Callable[..., tuple[int, str, str]]
MAGNITUDE = build(saliency="magnitude")
EVALUATION = ("--num-images", 1, "--num-held-out", 1, "--num-inference-steps", 1)


@pytest.fixture(scope="module")
def pruned_once(tiny_pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "out"
    prune_checkpoint(locate(str(tiny_pipeline)), out, None, MAGNITUDE)
    return out


@pytest.fixture
def pruned(pruned_once, tmp_path) -> Path:
    return Path(shutil.copytree(pruned_once, tmp_path / "pruned"))


def prune(model: Path, out: Path, overwrite: bool = False, **words: Any) -> None:
    prune_checkpoint(locate(str(model)), out, None, MAGNITUDE, overwrite, **words)


def stopped(model: Path, out: Path) -> Path:
    """A run that Ctrl-C stopped; its leftovers."""

    def stop(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(model, out, progress=stop)
    return out.with_name(f".{out.name}.part")


@pytest.mark.parametrize("name", ["soft", "hard", "folder"])
@pytest.mark.parametrize("is_journalled", [True, False])
def test_links_in_leftovers_lead_nowhere(name, is_journalled, tiny_pipeline, tmp_path) -> None:
    out, precious = tmp_path / "out", tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work", encoding="utf-8")
    part = stopped(tiny_pipeline, out)
    if not is_journalled:
        out.with_name(".out.journal").unlink()
    (shard,) = shards_of(part / "transformer")
    if name == "folder":
        shutil.rmtree(shard.parent)
        shard.parent.symlink_to(precious.parent)
    else:
        shard.unlink()
        (shard.symlink_to if name == "soft" else shard.hardlink_to)(precious)
    prune(tiny_pipeline, out)
    assert files_of(precious.parent) == {"thesis.tex": b"years of work"}
    assert list(false_claims(locate(str(out)))) == []
    assert all(not path.is_symlink() for path in out.rglob("*"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="plays two users")
@pytest.mark.parametrize("leftover", [".out.part", ".out.journal", ".out.lock"])
def test_leftovers_of_another_user_are_not_written(leftover, tiny_pipeline, tmp_path) -> None:
    """As root, who may remove what lies there: the folder is made anew, a held file refused."""
    theirs = tmp_path / leftover
    if leftover == ".out.part":
        shutil.copytree(tiny_pipeline, theirs)
    else:
        theirs.write_text("theirs", encoding="utf-8")
    for path in (theirs, *theirs.rglob("*")):
        os.chown(path, 1002, 1002)
    if leftover == ".out.journal":
        with pytest.raises(OutputError, match="of another user or has a second name; remove it"):
            prune(tiny_pipeline, tmp_path / "out")
        assert theirs.read_text(encoding="utf-8") == "theirs"
    else:
        prune(tiny_pipeline, tmp_path / "out")
        assert all(path.stat().st_uid == 0 for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_file_that_is_replaced_while_it_is_read_is_refused(
    part, when, own_pipeline, tmp_path
) -> None:
    shard, new = next((own_pipeline / part).glob("*.safetensors")), tmp_path / "new"
    shutil.copy(shard, new)
    edit_tensors(new, lambda tensors: [tensor.mul_(3) for tensor in tensors.values()])

    def replace(what: str, done: int, total: int) -> None:
        if what == "writing tensors" and new.exists() and (when == "early" or done > total // 2):
            new.replace(shard)

    with pytest.raises(ModelError, match="its files were changed while they were read"):
        prune(own_pipeline, tmp_path / "out", progress=replace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_model_that_is_removed_while_it_is_read_is_told_as_such(own_pipeline, tmp_path) -> None:
    def remove(what: str, done: int, _total: int) -> None:
        if what == "writing tensors" and done == 3:
            shutil.rmtree(own_pipeline / "vae")

    with pytest.raises(ModelError, match="model: its files were changed"):
        prune(own_pipeline, tmp_path / "out", progress=remove)


@pytest.mark.parametrize("where", ["thesis.tex", "transformer/thesis.tex", ".git/HEAD", "runs/a"])
def test_overwrite_leaves_what_no_manifest_lists(where, tiny_pipeline, pruned) -> None:
    (pruned / where).parent.mkdir(exist_ok=True)
    (pruned / where).write_text("years of work", encoding="utf-8")
    before = files_of(pruned.parent)
    with pytest.raises(OutputError, match=f"pruned: holds {where}, which no manifest of ditprune"):
        prune(tiny_pipeline, pruned, overwrite=True)
    assert files_of(pruned.parent) == before


def test_overwrite_leaves_a_folder_of_runs(tiny_pipeline, tmp_path) -> None:
    prune(tiny_pipeline / "transformer", tmp_path / "runs" / "a")
    before = files_of(tmp_path)
    with pytest.raises(OutputError, match="runs: is not a folder that ditprune wrote"):
        prune(tiny_pipeline, tmp_path / "runs", overwrite=True)
    assert files_of(tmp_path) == before


def test_overwrite_sees_what_came_while_it_worked(tiny_pipeline, pruned) -> None:
    def put(what: str, done: int, _total: int) -> None:
        (pruned / "thesis.tex").write_text("years of work", encoding="utf-8")

    with pytest.raises(OutputError, match=r"holds thesis\.tex"):
        prune(tiny_pipeline, pruned, overwrite=True, progress=put)
    assert (pruned / "thesis.tex").exists()
    (pruned / "thesis.tex").unlink()
    prune(tiny_pipeline, pruned, overwrite=True)  # what was done is placed
    assert list(false_claims(locate(str(pruned)))) == []
    assert list(pruned.parent.iterdir()) == [pruned]


def test_overwrite_replaces_pipelines_denoisers_compact_and_older_ones(
    tiny_pipeline, pruned, tmp_path
) -> None:
    prune(tiny_pipeline, pruned, overwrite=True)
    to_compact(locate(str(pruned)), tmp_path / "small")
    to_compact(locate(str(pruned)), tmp_path / "small", overwrite=True)
    prune(tiny_pipeline / "transformer", tmp_path / "bare")
    prune(tiny_pipeline / "transformer", tmp_path / "bare", overwrite=True)
    from folders import edit_json

    edit_json(pruned / "transformer" / "ditprune.json", lambda claims: claims.pop("beside"))
    prune(tiny_pipeline, pruned, overwrite=True)


def test_a_mount_point_is_refused_before_any_work(tiny_pipeline, tmp_path, monkeypatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    monkeypatch.setattr(loop, "_prune_job", lambda *_: pytest.fail("it worked"))
    with pytest.raises(OutputError, match="out: is a mount point"):
        prune(tiny_pipeline, tmp_path / "out", overwrite=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


SHARD = "transformer/diffusion_pytorch_model.safetensors"
OWN = [SHARD, "vae/config.json", "transformer/ditprune.json", "model_index.json"]


@pytest.mark.parametrize("verb", ["calibrate", "mask extract"])
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("through", ["its path", "a link", "a second name", "a folder's link"])
def test_a_models_own_files_are_never_an_output(
    through, name, verb, pruned, tmp_path, ditprune
) -> None:
    out = pruned / name
    if through == "a link":
        out = tmp_path / "link"
        out.symlink_to(pruned / name)
    elif through == "a second name":
        out = tmp_path / "second"
        out.hardlink_to(pruned / name)
    elif through == "a folder's link":
        (tmp_path / "elsewhere").symlink_to(pruned)
        out = tmp_path / "elsewhere" / name
    before = files_of(tmp_path)
    code, _, err = ditprune(*verb.split(), pruned, "-o", out, "--overwrite")
    assert code == 2
    assert f"{out}: is" in err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["results.json", "grid.png"])
def test_evaluate_replaces_no_results_of_others(
    name, tiny_pipeline, pruned, tmp_path, ditprune
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).write_text('{"my": "results of a month"}', encoding="utf-8")
    code, _, err = ditprune("evaluate", tiny_pipeline, pruned, "-o", mine, *EVALUATION)
    assert code == 2
    assert f"{mine / name}: " in err
    assert files_of(mine) == {name: b'{"my": "results of a month"}'}


def test_the_statistics_and_masks_of_python_replace_no_others(
    tiny_stats, tiny_dit, tmp_path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="holds no statistics of ditprune"):
        tiny_stats.save(tmp_path / "thesis.tex")
    tiny_stats.save(tmp_path / "s")
    tiny_stats.save(tmp_path / "s")
    denoiser = tiny_dit()
    outcome = api.prune_(denoiser, tiny_stats)
    denoiser.save_pretrained(tmp_path / "d")
    (tmp_path / "d" / "mask.safetensors").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="lies where the mask goes"):
        outcome.save(tmp_path / "d")
    assert not (tmp_path / "d" / "ditprune.json").exists()


FOREIGN = ["evil.py", "vae/evil.py", "vae/extra.safetensors", "transformer/older.bin"]


@pytest.mark.parametrize("name", FOREIGN)
def test_verify_tells_a_file_that_may_run(name, pruned) -> None:
    (pruned / name).write_bytes(b"x")
    assert list(false_claims(locate(str(pruned)))) == [
        f"{name}: is in the folder and in no ditprune.json"
    ]


def test_verify_tells_other_bytes_beside_the_denoiser(pruned) -> None:
    shard = next((pruned / "vae").glob("*.safetensors"))
    edit_tensors(shard, lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    (pruned / "scheduler" / "scheduler_config.json").unlink()
    assert list(false_claims(locate(str(pruned)))) == [
        "scheduler/scheduler_config.json: missing from the folder, as ditprune.json lists it",
        f"vae/{shard.name}: its bytes are not those that were copied",
    ]


def test_a_copy_holds_what_belongs_to_a_model_and_says_what_it_left(
    own_pipeline, tmp_path, caplog
) -> None:
    private = ["passwords.txt", "train.py", "vae/train.py", "runs/a/model.safetensors", "x.bin"]
    for name in private:
        (own_pipeline / name).parent.mkdir(parents=True, exist_ok=True)
        (own_pipeline / name).write_bytes(b"secret")
    (own_pipeline / "LICENSE").write_text("free", encoding="utf-8")
    caplog.set_level("INFO", "ditprune")
    prune(own_pipeline, tmp_path / "out")
    assert not {*private} & files_of(tmp_path / "out").keys()
    assert (tmp_path / "out" / "LICENSE").exists()
    assert "not copied, as no part of the model: " in caplog.text
    assert all(name in caplog.text for name in private)


RECIPES: list[dict[str, Any]] = [
    {"reconstruction": "obs"},
    {"reconstruction": "admm", "mask": "reconstruction", "allocation": "owl"},
    {
        "reconstruction": "obs",
        "mask": "refinement",
        "refinement": {"name": "distill", "num_steps": 2},
    },
]


@pytest.fixture(scope="module")
def two(tiny_dit, batches, tmp_path_factory) -> tuple[Any, Any, Source]:
    """A pipeline of two denoisers, their statistics and their calls."""
    there = tmp_path_factory.mktemp("two")
    dense = [tiny_dit(seed, num_layers=1) for seed in range(2)]
    model = save_pipeline(dense[0], there / "model")
    add_denoiser(model, dense[1])
    calls, stats = [], {}
    for seed, name in enumerate(("transformer", "transformer_2")):
        given = batches(dense[seed], n=3, seed=seed)
        stats[name] = api.calibrate(dense[seed], given)
        calls += [Call((), batch, None, name) for batch in given]
    save_calibration_set(calls, {"seed": 0}, there / "set")
    return locate(str(model)), stats, Source(load_calibration_set(there / "set"), Placement())


@pytest.mark.parametrize("words", RECIPES, ids=str)
@pytest.mark.parametrize("moment", ["in the second", "before the end"])
def test_what_was_done_of_the_first_denoiser_is_not_done_again(
    moment, words, two, tmp_path, monkeypatch
) -> None:
    model, stats, source = two
    whole, computed = loop.updates_of, []

    def counted(denoiser: Any, *args: Any, **kwargs: Any) -> Any:
        computed.append(1)
        if moment == "in the second" and len(computed) == 2:
            raise KeyboardInterrupt
        return whole(denoiser, *args, **kwargs)

    def stop(*_args: Any, **_words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "updates_of", counted)
    out, recipe = tmp_path / "out", build(**words)
    with monkeypatch.context() as patch:
        if moment == "before the end":
            patch.setattr(loop.card, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(model, out, stats, recipe, source=source)
    assert len(computed) == 2
    prune_checkpoint(model, out, stats, recipe, source=source)
    assert len(computed) == (3 if moment == "in the second" else 2)
    monkeypatch.setattr(loop, "updates_of", whole)
    prune_checkpoint(model, tmp_path / "whole", stats, recipe, source=source)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_the_room_for_updated_weights_is_asked_for(two, tmp_path, monkeypatch) -> None:
    model, stats, source = two
    asked: list[int] = []

    def note(_out: Path, _source: Path, needs_bytes: int, *_: Any) -> Any:
        asked.append(needs_bytes)
        raise OutputError("full")

    monkeypatch.setattr(loop, "resumable_folder", note)
    for recipe, calls in ((build(), None), (build(reconstruction="obs"), source)):
        with pytest.raises(OutputError, match="full"):
            prune_checkpoint(model, tmp_path / "out", stats, recipe, source=calls)
    job = loop.open_jobs(model, stats, build())[0]
    names = [f"{name}.weight" for name in job.selection.targets]
    kept_bytes = sum(job.weights.entries[name].size_bytes for name in names)
    assert asked[1] - asked[0] == kept_bytes


PLACES = {
    "prune": ["prune", "me/model", "-o", "OUT"],
    "convert": ["convert", "me/model", "--to", "dense", "-o", "OUT"],
    "calibrate": ["calibrate", "me/model", "-o", "OUT"],
    "mask extract": ["mask", "extract", "me/model", "-o", "OUT"],
    "mask apply": ["mask", "apply", "me/model", "mask", "-o", "OUT"],
}


@pytest.mark.parametrize("verb", PLACES)
def test_out_is_looked_at_before_a_download(verb, tmp_path, ditprune, monkeypatch) -> None:
    import huggingface_hub

    never = "it downloads"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail(never))
    out = tmp_path / "out"
    out.write_text("there", encoding="utf-8")
    code, _, err = ditprune(*[out if word == "OUT" else word for word in PLACES[verb]])
    assert code == 2
    assert f"{out}: exists" in err


def test_inspect_writes_nothing_where_it_is_called(
    tiny_pipeline, tmp_path, ditprune, monkeypatch
) -> None:
    from ditprune.cli import inspect as verb

    places: list[Path] = []
    whole = verb.forecast_run
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verb, "forecast_run", lambda *args: places.append(args[2]) or whole(*args))
    assert ditprune("inspect", tiny_pipeline)[0] == 0
    assert tmp_path not in (places[0], *places[0].parents)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_stdout_is_a_note_where_the_result_is_there(
    tiny_pipeline, tmp_path, capsys, monkeypatch
) -> None:
    from ditprune.cli.main import run

    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        line = ["prune", str(tiny_pipeline), "-o", str(tmp_path / "out"), "--saliency", "magnitude"]
        assert run(line) == 0
        assert run(["verify", str(tmp_path / "out")]) == 2
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {tmp_path / 'out'} is there, but not all could be shown "
                     "(No space left on device)"]  # fmt: skip


@pytest.mark.parametrize("content", ['{"rows": []}', "not JSON", "[]"])
def test_results_of_others_stay_where_a_study_would_write(
    content, tiny_pipeline, tmp_path, ditprune: Run
) -> None:
    file = tmp_path / "out" / "statistics" / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text(content, encoding="utf-8")
    words = ("statistics", tiny_pipeline, "-o", tmp_path / "out", "--num-samples", 1, "--steps", 1)
    code, _, err = ditprune("reproduce", *words)
    assert code == 2
    assert err.startswith(f"error: {file}: ")
    assert files_of(tmp_path / "out") == {"statistics/results.json": content.encode()}


def test_of_two_runs_that_share_a_set_of_calls_the_second_is_refused(
    tiny_pipeline, tmp_path, ditprune: Run
) -> None:
    calls = tmp_path / "shared.calls"
    line = ("calibrate", tiny_pipeline, "--calibration-set", calls, "--num-samples", 1,
            "--num-inference-steps", 1, "-o")  # fmt: skip
    with locked(calls):
        before = files_of(tmp_path)
        code, _, err = ditprune(*line, tmp_path / "second")
        assert code == 2
        assert f"{lock_of(calls)}: another run is writing here; wait for its end" in err
        assert files_of(tmp_path) == before
    assert ditprune(*line, tmp_path / "second")[0] == 0
    assert ditprune(*line, tmp_path / "third")[0] == 0
    assert (tmp_path / "second").read_bytes() == (tmp_path / "third").read_bytes()
