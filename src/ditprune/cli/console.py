"""How the command line speaks: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ditprune.progress import Report

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line of progress that is worth keeping."""
    err.print(line, markup=False)


def prefix(name: str, among: Sized) -> str:
    """What begins the lines of one of several denoisers; nothing where there is one."""
    return f"{name}: " if len(among) > 1 else ""


@contextmanager
def progress() -> Iterator[Report]:
    """Draws one bar per thing done, with the time left; nothing before the first report."""
    bars: dict[str, Any] = {}
    live = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=err,
    )  # fmt: skip

    def report(what: str, done: int, total: int) -> None:
        if what not in bars:
            live.start()
            bars[what] = live.add_task(what, total=total)
        live.update(bars[what], completed=done)

    try:
        yield report
    finally:
        if bars:
            live.stop()


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without source lines."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: say(f"warning: {message}")
        yield
