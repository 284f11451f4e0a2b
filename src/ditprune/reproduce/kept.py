"""What a study has done so far, on the disk: finished rows, statistics, images.

A row is kept under a hash of all that it depends on, so it serves every study that has it, and
another model, option or version does not see it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditprune.calibration.sample import Sampling, identity_of
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.placement import Placement
from ditprune.errors import OutputError
from ditprune.evaluation.drawing import Images
from ditprune.evaluation.protocol import Measures
from ditprune.evaluation.tools import tools_stamp
from ditprune.reproduce.rows import Row
from ditprune.writing.output import check_no_link, ensure_folder, write_beside

FOLDER = ".work"
_DIGITS = 24


@dataclass(frozen=True)
class Kept:
    """Args:
    folder: of unfinished work, beside the results.
    guard: the model, where it runs, and the versions.
    measures: which metrics rows have.
    made_with: the libraries and files that these metrics depend on.
    """

    folder: Path
    guard: Mapping[str, Any]
    measures: Measures
    made_with: Mapping[str, Any]

    def read_row(self, row: Row) -> dict[str, Any] | None:
        """A finished row. Raises OutputError for a file that is damaged."""
        return _read(self._row_file(row))

    def write_row(self, row: Row, record: Mapping[str, Any]) -> None:
        """Keep a finished row. Raises OutputError."""
        _write(self._row_file(row), record)

    def read_look(self, what: str, sampling: Sampling) -> dict[str, Any] | None:
        """What a study that draws nothing has found."""
        return _read(self._file("looks", ".json", {"what": what, "sampling": asdict(sampling)}))

    def write_look(self, what: str, sampling: Sampling, record: Mapping[str, Any]) -> None:
        """Keep what a study that draws nothing has found. Raises OutputError."""
        file = self._file("looks", ".json", {"what": what, "sampling": asdict(sampling)})
        _write(file, record)

    def statistics_file(self, sampling: Sampling) -> Path:
        """Where the statistics of a calibration belong."""
        return self._file("statistics", ".safetensors", {"sampling": asdict(sampling)})

    def images(self, row: Row) -> Images:
        """Where the images of a row are kept until it is finished; of the dense one, for good."""
        own = row.protocol
        folder = self.folder / "images" / self._model_key(row)
        return Images(folder, own.num_images, own.batch_size)

    def pruned_folder(self, row: Row) -> Path:
        """Where the pruned model of a row lies until it is finished."""
        return self.folder / "pruned" / self._model_key(row)

    def _row_file(self, row: Row) -> Path:
        words = _words_of(row) | {"measures": asdict(self.measures), "made_with": self.made_with}
        return self._file("rows", ".json", words)

    def _model_key(self, row: Row) -> str:
        return self._key(_words_of(row))

    def _file(self, kind: str, ending: str, words: Mapping[str, Any]) -> Path:
        return self.folder / kind / f"{self._key(words)}{ending}"

    def _key(self, words: Mapping[str, Any]) -> str:
        text = json.dumps({**self.guard, **words}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _words_of(row: Row) -> dict[str, Any]:
    """What the images of a row depend on."""
    words: dict[str, Any] = {"protocol": asdict(row.protocol)}
    if row.recipe is not None:
        words |= {"recipe": row.recipe.to_json(), "sampling": asdict(row.sampling)}
    return words


def open_kept(model: ModelFolder, out: Path, measures: Measures, place: Placement) -> Kept:
    """What was kept in a folder of results. Raises OutputError, ModelError."""
    folder = out / FOLDER
    check_no_link(folder)
    guard = identity_of(model, Sampling(), place)
    own = {k: v for k, v in guard.items() if k != "sampling"}
    return Kept(folder, own, measures, tools_stamp(measures))


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{file}: cannot be read as JSON ({error}); remove it") from None
    if not isinstance(record, dict):
        raise OutputError(f"{file}: holds no finished row; remove it")
    return record


def _write(file: Path, record: Mapping[str, Any]) -> None:
    ensure_folder(file.parent)
    with write_beside(file) as part:
        part.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
