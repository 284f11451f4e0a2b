"""Unfinished work that lies beside its result, so that the same command can continue with it.

`.FILE.work/` holds the work and the identity of the run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditprune.errors import OutputError
from ditprune.writing.files import check_file, ensure_folder, sync, write_beside
from ditprune.writing.json_file import read_json
from ditprune.writing.lock import lock_of
from ditprune.writing.own import check_no_link, is_own_tree, remove_leftover

_GUARD = "guard.json"
_LONGEST = 60  # characters of a value to show


def work_folder_of(out: Path) -> Path:
    """Where the work on a file is kept."""
    return out.with_name(f".{out.name}.work")


def sweep_work(out: Path) -> None:
    """Remove what a run that was killed behind its last step left over."""
    shutil.rmtree(_done(out), ignore_errors=True)


def check_out(out: Path, overwrite: bool) -> None:
    """The refusals of `check_work` that need no model. Raises OutputError."""
    check_no_link(work_folder_of(out), _done(out))
    leftovers = (work_folder_of(out), _done(out), lock_of(out))  # of a finished file, perhaps
    if not any(path.exists() for path in leftovers):
        check_file(out, overwrite)


def check_work(out: Path, now: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse a file that is there, and work that other settings began. Raises OutputError."""
    check_no_link(work_folder_of(out), _done(out))
    changed = _changed(out, now)
    if changed and not overwrite:
        raise OutputError(
            f"{out}: unfinished work with other settings lies beside it "
            f"({'; '.join(changed)}); give those again to go on, or --overwrite to drop it"
        )
    if changed != []:
        check_file(out, overwrite)


def continues_work(out: Path, now: Mapping[str, Any]) -> bool:
    """Whether work with the same settings lies beside `out`."""
    return _changed(out, now) == []


def open_work(out: Path, now: Mapping[str, Any]) -> None:
    """Go on with the work on `out` if its identity is the same, else begin it anew."""
    work = work_folder_of(out)
    if continues_work(out, now):
        return
    remove_leftover(work)
    ensure_folder(work)
    with write_beside(work / _GUARD) as part:
        part.write_text(json.dumps(now, indent=1), encoding="utf-8")


def _changed(out: Path, now: Mapping[str, Any]) -> list[str] | None:
    """What differs from the work that lies beside `out`; None where there is none."""
    file = work_folder_of(out) / _GUARD
    if not file.is_file() or not is_own_tree(file.parent):
        return None
    return differences(read_json(file), json.loads(json.dumps(now)))


def finish_work(out: Path) -> None:
    """Put the finished file in its place and drop the work; a kill in between loses neither.

    Before the first rename the work is whole; after it the work would only be redone.
    """
    work = work_folder_of(out)
    (work / out.name).replace(out)
    sync(out.absolute().parent)
    work.rename(_done(out))
    shutil.rmtree(_done(out))


def _done(out: Path) -> Path:
    return out.with_name(f".{out.name}.done")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: before → now` for every value that is not the same, nested keys with dots."""
    changed = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(f"{prefix}{key}: {_short(old)} → {_short(new)}")
    return changed


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
