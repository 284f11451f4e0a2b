"""How the command line speaks: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from ditprune.progress import Progress
from ditprune.writing.staging import part_of

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_QUIET_S = 30.0


def say(line: str) -> None:
    """One line of progress that is worth keeping; stays one line whatever names stand in it."""
    err.print(printable(line), markup=False)


def printable(text: str) -> str:
    """The text with line breaks, escape codes and halves of characters written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def show(lines: Iterable[str], prefix: str = "") -> None:
    """Results, a line each."""
    for line in lines:
        out.print(f"{prefix}{line}", markup=False)


def prefix(name: str, among: Sized) -> str:
    """What begins the lines of one of several denoisers; nothing where there is one."""
    return f"{name}: " if len(among) > 1 else ""


@contextmanager
def progress() -> Iterator[Progress]:
    """One bar per thing done, with the time left; where nobody watches, as in a log file, a line
    each half minute."""
    if not err.is_terminal:
        yield _line_now_and_then()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    bars: dict[str, Any] = {}
    live = Bars(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=err,
    )  # fmt: skip

    def show(what: str, done: int, total: int) -> None:
        if what not in bars:
            live.start()
            bars[what] = live.add_task(what, total=total)
        live.update(bars[what], completed=done)

    try:
        yield show
    finally:
        if bars:
            live.stop()


def _line_now_and_then() -> Progress:
    """Says how far each thing is, where `_QUIET_S` went by without a word."""
    began: dict[str, tuple[float, int]] = {}
    last: dict[str, int] = {}
    spoke_s = time.monotonic()

    def say_now_and_then(what: str, done: int, total: int) -> None:
        nonlocal spoke_s
        now_s = time.monotonic()
        if done <= last.get(what, -1):  # the same again, of something else
            began.pop(what, None)
        last[what] = done
        start_s, num_before = began.setdefault(what, (now_s, done))
        if now_s - spoke_s < _QUIET_S:
            return
        spoke_s, rate = now_s, (done - num_before) / max(now_s - start_s, 1e-9)
        left = f", about {timedelta(seconds=round((total - done) / rate))} left" if rate else ""
        say(f"{what}: {done}/{total}{left}")

    return say_now_and_then


@contextmanager
def promise(out: Path) -> Iterator[None]:
    """Say what an interrupt leaves of a folder that takes long to write."""
    try:
        yield
    except KeyboardInterrupt:
        if part_of(out).exists():
            say(f"{part_of(out)} holds what is done; the same command goes on from there")
        raise


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without source lines."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: say(f"warning: {message}")
        yield
