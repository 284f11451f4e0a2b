"""Other libraries write nothing while they load, and afterwards all is as it was."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from ditprune import prune
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_denoiser, load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.quiet import quiet
from tiny_pipelines import PIPELINES

FORGED = "t5\x1b[2J\x9b\u202e"


def settings() -> tuple[object, ...]:
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    accelerate = logging.getLogger("accelerate.big_modeling")
    libraries = diffusers, transformers
    return (
        logging.root.manager.disable, accelerate.level, torch.get_num_threads(),
        *(library.get_verbosity() for library in libraries),
        *(library.is_progress_bar_enabled() for library in libraries),
    )  # fmt: skip


@pytest.fixture(scope="module")
def of_prompts(tmp_path_factory) -> Path:
    """A pipeline whose text encoder has a name that commands the terminal."""
    folder = tmp_path_factory.mktemp("prompts") / "model"
    PIPELINES["PixArtSigmaPipeline"]().save_pretrained(folder)
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"model_type": FORGED}
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_no_library_writes_a_name_of_the_folder(of_prompts: Path, capfd) -> None:
    before = settings()
    load_pipeline(locate(str(of_prompts)))
    load_denoiser(of_prompts / "transformer", Placement.of("cpu", None, "1KB"))
    assert capfd.readouterr().err.count("\x1b") == 0
    assert settings() == before


def test_bars_that_a_user_turned_off_stay_off(of_prompts: Path, tmp_path: Path) -> None:
    from diffusers.utils import logging as diffusers

    shutil.copytree(of_prompts, tmp_path / "broken")
    (tmp_path / "broken" / "vae" / "config.json").write_text("{", encoding="utf-8")
    diffusers.disable_progress_bar()
    try:
        before = settings()
        load_pipeline(locate(str(of_prompts)))
        with pytest.raises(Exception, match="cannot be read as JSON"):
            load_pipeline(locate(str(tmp_path / "broken")))
        assert settings() == before
    finally:
        diffusers.enable_progress_bar()


def test_pruning_leaves_the_process_as_it_was(
    of_prompts: Path, tmp_path: Path, with_threads
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        before = settings()
        prune(of_prompts, tmp_path / "out", saliency="magnitude", progress=False)
        with pytest.raises(KeyboardInterrupt):
            prune(of_prompts, tmp_path / "again", saliency="magnitude", progress=stop)
        assert settings() == before

    with_threads(2, run)


def test_what_was_disabled_before_stays_so() -> None:
    logging.disable(logging.INFO)
    try:
        with quiet(), quiet():
            assert logging.root.manager.disable == logging.CRITICAL
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)
