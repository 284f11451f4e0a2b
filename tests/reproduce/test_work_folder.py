"""Kept rows serve again, until what their metrics were made with is another."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.checkpoints.locate import locate
from ditprune.denoiser.placement import Placement
from ditprune.evaluation.protocol import Measures
from ditprune.evaluation.tools import LPIPS_WEIGHTS
from ditprune.reproduce.rows import Options, rows_of
from ditprune.reproduce.studies import STUDIES
from ditprune.reproduce.workbench import (
    WorkFolder,
    open_work_folder,
    read_record,
    write_record,
)

RECORD = {"metrics": {}}
ROW = rows_of(STUDIES["ablation"], Options(num_images=2), False)[1]


@pytest.fixture
def opened(tiny_pipeline, tmp_path, monkeypatch) -> Any:
    """Opens what was kept, as the next run would."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def open_(measures: Measures) -> WorkFolder:
        return open_work_folder(locate(str(tiny_pipeline)), tmp_path / "out", measures, Placement())

    return open_


def test_a_library_that_came_makes_rows_anew_but_not_images(opened, monkeypatch) -> None:
    before = opened(Measures())
    write_record(before.row_file(ROW), RECORD)
    assert read_record(opened(Measures()).row_file(ROW)) == RECORD
    known = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.4" if name == "torch-fidelity" else known(name)
    )
    after = opened(Measures())
    assert read_record(after.row_file(ROW)) is None
    assert after.images(ROW) == before.images(ROW)


def test_weights_that_came_make_rows_anew(opened, tmp_path) -> None:
    write_record(opened(Measures()).row_file(ROW), RECORD)
    file = tmp_path / "hub" / "checkpoints" / LPIPS_WEIGHTS
    file.parent.mkdir(parents=True)
    file.touch()
    assert read_record(opened(Measures()).row_file(ROW)) is None


@pytest.mark.parametrize("option", ["reference", "feature_extractor", "clip"])
def test_given_files_are_known_by_more_than_their_path(option, opened, tmp_path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    file = folder / "0.png"
    file.write_bytes(b"one")
    path: Path | str = {"reference": folder, "feature_extractor": str(file), "clip": str(folder)}[
        option
    ]
    measures = Measures(**{option: path})
    write_record(opened(measures).row_file(ROW), RECORD)
    assert read_record(opened(measures).row_file(ROW)) == RECORD
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert read_record(opened(measures).row_file(ROW)) is None
