"""Text of others on a terminal: as it is, on one line, and never a command to the terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.table import Table
from safetensors.torch import load_file, save_file

from ditprune.cli import console
from ditprune.cli.main import main, run
from ditprune.reporting.bars import bars
from ditprune.reporting.terminal import Terminal

CLI = Path(console.__file__).parent
FORGED = "x\x1b[2J\x1b[H\nOUT: every claim holds\x1b[8m\x9b2J\u202e"
LOOKS_LIKE_MARKUP = ("run:fire:1", "[bold]b[/bold]", "[/x]", "/a/[red]", "50:100:", "\\[b]")


@pytest.mark.parametrize("text", LOOKS_LIKE_MARKUP)
def test_what_looks_like_markup_is_printed_as_it_is(text: str, capsys) -> None:
    console.show([text], "p:fire:: ")
    console.say(text)
    table = Table(text, box=None)
    table.add_row(text)
    console.show_table(table)
    out, err = capsys.readouterr()
    lines = [line.strip() for line in out.splitlines()]
    assert lines == [f"p:fire:: {text}", text, text]
    assert err == f"{text}\n"


def test_no_character_commands_the_terminal(capsys) -> None:
    console.show([FORGED])
    console.say(FORGED)
    table = Table("name", FORGED, box=None)
    table.add_row(FORGED, "1")
    console.show_table(table)
    for written in capsys.readouterr():
        assert all(c.isprintable() for c in written.replace("\n", ""))
        assert not any(line.startswith("OUT:") for line in written.splitlines())


def test_no_bar_commands_the_terminal() -> None:
    terminal = Terminal(stderr=True)
    terminal.file = io.StringIO()
    with bars(terminal) as show:
        show("drawing \x1b[2J:fire:[b]\n", 1, 2)
    written = terminal.file.getvalue()
    assert "\x1b[2J" not in written
    assert "drawing \\x1b[2J:fire:[b]\\n" in written


def test_verify_writes_a_forged_name_out(pruned: Path, ditprune) -> None:
    file = pruned / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {FORGED: torch.zeros(1)}, file, {"format": "pt"})
    code, out, _ = ditprune("verify", pruned)
    assert code == 1
    assert "\x1b" not in out
    assert "every claim holds" in out  # within a line that begins with "false"
    *claims, last = out.splitlines()
    assert all(line.startswith("false: ") for line in claims)
    assert last == f"{pruned}: {len(claims)} false claims"


def test_verbs_write_through_the_console_only() -> None:
    """`click.echo` is for JSON, which escapes by itself."""
    for file in CLI.glob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert "print(" not in line or file.name == "console.py", f"{file.name}: {line}"
            assert "echo(" not in line or "click.echo(json.dumps(" in line, f"{file.name}: {line}"
            assert "Console(" not in line, f"{file.name}: {line}"


def test_a_terminal_that_lacks_characters_ends_nothing(pruned: Path) -> None:
    """Names that are not UTF-8 reach Python as halves of characters."""
    there = pruned.rename(pruned.with_name("modèle →"))
    missing = os.fsdecode(str(there).encode() + b"/caf\xe9")
    for folder, code, name in ((there, 0, "mod\\xe8le \\u2192"), (missing, 2, "caf\\udce9")):
        done = subprocess.run(
            [sys.executable, "-m", "ditprune", "verify", folder],
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
        )  # fmt: skip
        written = (done.stdout + done.stderr).decode("ascii")
        assert done.returncode == code, written
        assert name in written
        assert "Traceback" not in written


def test_results_in_an_encoding_that_lacks_them_are_written_out(monkeypatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    console.show(["modèle → 模型 \udce9"])
    sys.stdout.flush()
    assert raw.getvalue().decode("cp1252").endswith("modèle \\u2192 \\u6a21\\u578b \\udce9\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed_ends_nothing(stream: str, pruned: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, stream, None)
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(pruned)])
    assert stop.value.code == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_who_ends_early_ends_nothing(stream: str, pruned: Path, monkeypatch) -> None:
    """As `ditprune … | head` does: no traceback, and the exit code is the work's."""
    read, write = os.pipe()
    os.close(read)
    name = {"stdout": "_out", "stderr": "_err"}[stream]
    monkeypatch.setattr(console, name, Terminal(stream == "stderr"))
    with os.fdopen(write, "w", encoding="utf-8") as nobody, Path(os.devnull).open("w") as nowhere:
        monkeypatch.setattr(sys, stream, nobody)
        assert run(["verify", str(pruned)]) == 0
        assert run(["inspect", str(pruned / "nothing")]) == 2
        assert run(["verify", "--help"]) == (141 if stream == "stdout" else 0)
        os.dup2(nowhere.fileno(), write)  # for what is left
