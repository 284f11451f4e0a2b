"""How the command line speaks: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.table import Table

from ditprune.progress import Progress
from ditprune.reporting.terminal import Terminal
from ditprune.writing.staging import part_of

_out, _err = Terminal(), Terminal(stderr=True)


def say(line: str) -> None:
    """One line of progress that is worth keeping; stays one line whatever names stand in it."""
    with suppress(OSError):  # work goes on where nobody can be told
        _err.print(line)


def show(lines: Iterable[str], prefix: str = "") -> None:
    """Results, a line each."""
    for line in lines:
        _show(f"{prefix}{line}")


def show_table(table: Table) -> None:
    """Results with columns."""
    _show(table)


class _Results:
    """Where the results of the running verb are, and whether it can be told what they are."""

    def __init__(self) -> None:
        self.place: Path | None = None
        self.is_heard = True


_results = _Results()


def begin() -> None:
    """Nothing is done yet."""
    _results.__init__()  # type: ignore[misc]


def is_done(place: Path) -> None:
    """The result is on the disk: what cannot be shown from now on is a note, and no error."""
    _results.place = place


def _show(line: str | Table) -> None:
    """Raises OSError where nothing is on the disk, as what is shown is the result then.

    A reader who ends, as `head` does, has what it wanted.
    """
    if not _results.is_heard:
        return
    try:
        _out.print(line)
    except BrokenPipeError:  # nobody reads on, as behind `| head`; the work goes on
        _results.is_heard = False
    except OSError as error:
        if _results.place is None:
            raise
        _results.is_heard = False
        say(f"note: {_results.place} is there, but not all could be shown ({error.strerror})")


def width() -> int:
    """How many characters a line of results can have."""
    return _out.width


def prefix(name: str, among: Sized) -> str:
    """What begins the lines of one of several denoisers; nothing where there is one."""
    return f"{name}: " if len(among) > 1 else ""


@contextmanager
def progress() -> Iterator[Progress]:
    """One bar per thing done, with the time left; where nobody watches, as in a log file, a line
    each half minute."""
    from ditprune.reporting.bars import bars, line_now_and_then

    if not _err.is_terminal:
        yield line_now_and_then(say)
        return
    with bars(_err) as tell:
        yield tell


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


@contextmanager
def saying_what_is_logged() -> Iterator[None]:
    """What ditprune logs, a line each."""
    logger, handler = logging.getLogger("ditprune"), _Sayer(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Sayer(logging.Handler):
    """Says what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())
