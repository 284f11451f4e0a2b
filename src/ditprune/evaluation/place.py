"""May results be put into a folder, and are the models still those that were measured?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.copy_folder import stamp
from ditprune.checkpoints.locate import ModelFolder
from ditprune.errors import ModelError, OutputError
from ditprune.evaluation.in_memory import AnyModel, ModelInMemory
from ditprune.writing.files import ensure_folder
from ditprune.writing.json_file import read_json
from ditprune.writing.lock import locked_folder

RESULTS, GRID = "results.json", "grid.png"


def check_results_place(out: Path) -> None:
    """Refuse a folder whose results or picture `evaluate` did not write. Raises OutputError."""
    for file in (out / RESULTS, out / GRID):
        if file.is_symlink():
            raise OutputError(f"{file}: is a link; move it away, or choose another folder")
    if (out / RESULTS).exists():
        check_results_file(out / RESULTS)
    elif (out / GRID).exists():
        raise OutputError(
            f"{out / GRID}: exists, and no {RESULTS} of ditprune evaluate beside it; move it away, "
            "or choose another folder"
        )


def check_results_file(file: Path) -> None:
    """Refuse a file that `evaluate` did not write. Raises OutputError."""
    try:
        content = read_json(file)
        is_ours = isinstance(content.get("models"), list) and "format" in content
    except ModelError:
        is_ours = False
    if not is_ours:
        raise OutputError(
            f"{file}: is not a results.json of ditprune evaluate; move it away, or choose another "
            "folder"
        )


@contextmanager
def held_images(folder: Path | None, is_first: bool) -> Iterator[None]:
    """Keep other evaluations out of a folder of images that they may share. Raises OutputError."""
    with ExitStack() as stack:
        if folder is not None and is_first:
            ensure_folder(folder)
            stack.enter_context(locked_folder(folder))
        yield


def stamps_of(models: Mapping[str, AnyModel]) -> dict[str, str | None]:
    """What shows that the files of a model are others; None for a model in memory."""
    return {name: _stamp(model) for name, model in models.items()}


def check_models_unchanged(
    models: Mapping[str, AnyModel], before: Mapping[str, str | None]
) -> None:
    """Refuse folders whose files were replaced while they were measured. Raises ModelError."""
    for name, model in models.items():
        if _stamp(model) != before[name]:
            raise ModelError(
                f"{model.name}: its files were changed while {name} was measured; evaluate again "
                "when nothing writes there"
            )


def _stamp(model: AnyModel) -> str | None:
    if isinstance(model, ModelInMemory):
        return None
    assert isinstance(model, ModelFolder)
    try:
        return stamp(model, {name: open_weights(f) for name, f in model.denoisers.items()})
    except OSError:  # one is gone
        return None
