"""Progress where nobody watches: a line now and then, and none of quick work."""

from __future__ import annotations

import pytest

from ditprune.cli import console
from ditprune.reporting import bars


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


def test_quick_work_says_nothing(clock, capsys) -> None:
    with console.progress() as progress:
        for done in range(1, 6):
            clock[0] += 5
            progress("drawing", done, 5)
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is_and_what_is_left(clock, capsys) -> None:
    with console.progress() as progress:
        for done in range(11, 21):
            clock[0] += 10
            progress("drawing", done, 70)
    assert capsys.readouterr().err.splitlines() == [
        "drawing: 13/70, about 0:09:30 left",
        "drawing: 16/70, about 0:09:00 left",
        "drawing: 19/70, about 0:08:30 left",
    ]


def test_the_first_report_after_a_long_silence_promises_nothing(clock, capsys) -> None:
    with console.progress() as progress:
        clock[0] += 60
        progress("held-out calls", 1, 4)
    assert capsys.readouterr().err == "held-out calls: 1/4\n"


def test_what_begins_again_is_counted_anew(clock, capsys) -> None:
    with console.progress() as progress:
        for done in (1, 2, 3, 1, 2, 3):
            clock[0] += 12
            progress("images of this row", done, 3)
    assert capsys.readouterr().err.splitlines() == [
        "images of this row: 3/3, about 0:00:00 left",
        "images of this row: 3/3, about 0:00:00 left",
    ]


def test_nothing_done_yet_can_be_reported(clock, capsys) -> None:
    with console.progress() as progress:
        progress("calibrating", 0, 1)
        clock[0] += 60
        progress("calibrating", 1, 1)
    assert capsys.readouterr().err == "calibrating: 1/1, about 0:00:00 left\n"
