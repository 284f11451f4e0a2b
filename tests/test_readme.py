"""What the README shows is true: the snippet runs, verbs and options exist, the tree is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ditprune
from ditprune.cli.main import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
LOWEST_LINE = 60


def test_it_fits_on_one_screen() -> None:
    assert len(README.splitlines()) <= LOWEST_LINE


def test_the_snippet_runs_as_it_is_written(tmp_path, monkeypatch) -> None:
    (snippet,) = [body for language, body in BLOCKS if language == "python"]
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    assert scope["outcome"].sparsity == 0.5
    assert ditprune.verify("pruned") == []


@pytest.mark.parametrize(
    "line",
    [line for _, body in BLOCKS for line in body.splitlines() if line.startswith("ditprune ")],
)
def test_every_command_line_is_one(line: str) -> None:
    """Each verb exists and takes each option shown."""
    verb, *rest = shlex.split(line)[1:]
    shown = CliRunner().invoke(app, [verb, "--help"])
    assert shown.exit_code == 0
    for option in (word for word in rest if word.startswith("-")):
        assert re.search(rf"(^|[\s,]){option}[\s,]", shown.output), option


def test_make_has_its_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_tree_is_there() -> None:
    (tree,) = [body for _, body in BLOCKS if body.startswith("src/ditprune/")]
    shown = set(re.findall(r"(?:^|\s{2,})([\w]+(?:/|\.py))(?=\s)", tree, re.MULTILINE))
    top = {name for name in shown if (ROOT / name).exists()}
    package = Path(ditprune.__file__).parent
    assert top >= {"tests/", "examples/", "bench/", "log/"}
    for name in shown - top:
        assert (package / name).exists(), name
    folders = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    assert folders <= shown


def test_links_and_pictures_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
