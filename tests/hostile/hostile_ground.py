"""What a hostile case may spoil, the table of all cases, and a picture of a folder to compare."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from folders import STEM, Payload

_READ_BYTES = 300_000_000  # files above are sparse; their size and time stand for them


@dataclass(frozen=True)
class Ground:
    """Valid input for every verb, an empty place for OUT, and a file outside of both.

    Args:
        root: `given/` is spoilt, `place/` is where OUT goes, `outside/` is nobody's business.
    """

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "given" / "model"

    @property
    def denoiser(self) -> Path:
        return self.model / "transformer"

    @property
    def weights(self) -> Path:
        return self.denoiser / f"{STEM}.safetensors"

    @property
    def index(self) -> Path:
        return self.denoiser / f"{STEM}.safetensors.index.json"

    @property
    def config(self) -> Path:
        return self.denoiser / "config.json"

    @property
    def pruned(self) -> Path:
        return self.root / "given" / "pruned"

    @property
    def statistics(self) -> Path:
        return self.root / "given" / "statistics.safetensors"

    @property
    def calls(self) -> Path:
        return self.root / "given" / "calls"

    @property
    def unit(self) -> Path:
        return self.calls / "unit-00000.safetensors"

    @property
    def recipe(self) -> Path:
        return self.root / "given" / "recipe.json"

    @property
    def out(self) -> Path:
        return self.root / "place" / "out"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def mark(self) -> Path:
        """Exists where something of the input was run."""
        return self.root / "mark"

    def write(self, name: str, content: bytes) -> Path:
        """A file of one's own among the input."""
        file = self.root / "given" / name
        file.write_bytes(content)
        return file

    def pickle(self, file: Path) -> None:
        """A pickle that leaves the mark where it is loaded."""
        file.write_bytes(pickle.dumps(Payload(self.mark)))

    def code(self, file: Path) -> None:
        """A module that leaves the mark where it is imported."""
        file.write_text(f"open({str(self.mark)!r}, 'w').close()\n", encoding="utf-8")

    def command(self, verb: str) -> list[object]:
        """The shortest command line of a verb; what a spoiler returns is added to it."""
        steps = ["--num-inference-steps", 1]
        return {
            "inspect": ["inspect", self.model, "--statistics", self.statistics],
            "prune": ["prune", self.model, "-o", self.out, "--statistics", self.statistics],
            "calibrate": ["calibrate", self.model, "-o", self.out, "--num-samples", 2, *steps],
            "verify": ["verify", self.pruned],
            "evaluate": ["evaluate", self.model, self.pruned, "-o", self.out, "--num-images", 1,
                         "--num-held-out", 1, *steps],
        }[verb]  # fmt: skip


Spoil = Callable[[Ground], object]


@dataclass(frozen=True)
class Case:
    """One broken or malicious input and what the refusal of one verb must say.

    Args:
        spoil: changes the ground; where it returns a list, these are further arguments, which may
            take the place of ones before.
        word: a regular expression that the error line must contain.
        is_midway: lines of progress may come before the error.
    """

    name: str
    verb: str
    spoil: Spoil
    word: str
    is_midway: bool = False


CASES: list[Case] = []


def add(name: str, verbs: str, word: str, spoil: Spoil, is_midway: bool = False) -> None:
    """Put a case into the table, once for each verb."""
    CASES.extend(Case(name, verb, spoil, word, is_midway) for verb in verbs.split())


def hostile(verbs: str, word: str, is_midway: bool = False) -> Callable[[Spoil], Spoil]:
    """The same as a decorator; the case is called as the function."""

    def put(spoil: Spoil) -> Spoil:
        add(spoil.__name__, verbs, word, spoil, is_midway)
        return spoil

    return put


def picture(root: Path, leave_out: Iterable[Path] = ()) -> dict[str, object]:
    """Everything below a folder: kinds, links, and the bytes of files. Follows no link."""
    left_out = set(leave_out)
    seen: dict[str, object] = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if Path(folder, name) not in left_out]
        for path in (Path(folder, name) for name in (*names, *files)):
            if path not in left_out:
                seen[str(path.relative_to(root))] = _state(path)
    return seen


def _state(path: Path) -> object:
    if path.is_symlink():
        return "link", str(path.readlink())
    if not path.is_file():
        return "folder" if path.is_dir() else "special"
    state = path.stat()
    if state.st_size > _READ_BYTES:
        return state.st_size, state.st_mtime_ns
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy(source: Path, target: Path) -> None:
    """A file or a folder."""
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
