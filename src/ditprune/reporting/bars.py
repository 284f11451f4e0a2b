"""How is it shown how far long work is? A bar for each thing, or a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from ditprune.errors import RecipeError
from ditprune.progress import Progress, silent
from ditprune.reporting.terminal import Terminal, printable

ProgressArgument = Progress | bool | None

_QUIET_S = 30.0


@contextmanager
def bars(console: Terminal | None = None) -> Iterator[Progress]:
    """One bar for each thing that is done, with the time left, on stderr by default."""
    shown: dict[str, Any] = {}
    live = Bars(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console or Terminal(stderr=True),
    )  # fmt: skip

    def show(what: str, done: int, total: int) -> None:
        if what not in shown:
            live.start()
            shown[what] = live.add_task(printable(what), total=total)
        live.update(shown[what], completed=done)

    try:
        yield show
    finally:
        if shown:
            live.stop()


def line_now_and_then(say: Callable[[str], None]) -> Progress:
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
def telling(progress: ProgressArgument) -> Iterator[Progress]:
    """The function that is told how far the work is."""
    if callable(progress):
        yield progress
    elif not (progress is None or isinstance(progress, bool)):
        raise RecipeError(
            f"progress={progress!r:.60}: expected None, False or a function of what, done and total"
        )
    elif progress is False or not (progress or sys.stderr.isatty()):
        yield silent
    else:
        with bars() as show:
            yield show
