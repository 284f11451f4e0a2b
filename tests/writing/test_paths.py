"""`~` is the home in every path, on the command line and in Python; what is no path is one line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

import ditprune
from ditprune.cli.main import VERBS, app
from ditprune.cli.options import PATH
from ditprune.errors import DitpruneError, ModelError, OutputError
from ditprune.writing.paths import path_of

PLACES = {
    "out", "set_folder", "statistics", "prompts", "reference", "images", "file", "folder", "like",
}  # fmt: skip


def test_the_home_is_put_in_its_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/x") == path_of(Path("~/x")) == tmp_path / "x"
    assert path_of("a~b") == Path("a~b")
    assert path_of("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x")


@pytest.mark.parametrize("given", [None, 3, b"x", "", "a\0b", ["a"], True], ids=repr)
def test_what_is_no_path_is_one_line(given: object) -> None:
    with pytest.raises(OutputError, match=r"expected a path|holds NUL"):
        path_of(given)
    with pytest.raises(ModelError):
        path_of(given, ModelError)


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_of_a_verb_is_read_so(verb: str) -> None:
    command = app.get_command(click.Context(app), verb)
    assert command is not None
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    for part in commands:
        for parameter in part.params:
            is_model = parameter.name == "out" and verb in ("verify", "push")  # read by `locate`
            is_path = parameter.name in PLACES and not is_model
            assert (parameter.type is PATH) == is_path, parameter.name


def test_python_reads_them_so(tiny_dit, batches, tiny_stats, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    denoiser = tiny_dit()
    calls = ditprune.api.calls.Calls([ditprune.Call.of(batch) for batch in batches(denoiser)])
    calls.save("~/calls")
    assert len(ditprune.load_calls("~/calls")) == 3
    tiny_stats.save("~/s.safetensors")
    ditprune.load_statistics("~/s.safetensors")
    denoiser.save_pretrained(tmp_path / "m")
    ditprune.prune("~/m", "~/out", "~/s.safetensors", progress=False)
    assert ditprune.verify("~/out") == []
    ditprune.extract_mask("~/out", "~/mask", progress=False)
    ditprune.apply_mask_(denoiser, "~/mask")
    ditprune.convert("~/out", "~/small", to="compact", progress=False)
    ditprune.prune_(tiny_dit(), "~/s.safetensors", progress=False)
    names = ["calls", "m", "mask", "out", "s.safetensors", "small"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("given", ["a\0b", "", 3, None], ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda given: ditprune.load_calls(given), lambda given: ditprune.load_statistics(given),
        lambda given: ditprune.report(given), lambda given: ditprune.prune("bundled", given),
        lambda given: ditprune.verify(given), lambda given: ditprune.inspect(given),
        lambda given: ditprune.convert("bundled", given, to="compact"),
        lambda given: ditprune.extract_mask("bundled", given),
        lambda given: ditprune.evaluate("bundled", ["bundled"], given),
    ],
)  # fmt: skip
def test_what_is_no_path_is_refused_by_every_function(call, given: object) -> None:
    with pytest.raises(DitpruneError):
        call(given)
