"""A conversion that was stopped: the same command does the rest, and not what is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.errors import OutputError
from ditprune.method.words import build
from ditprune.pruning.convert import to_compact, to_dense
from ditprune.pruning.loop import prune_checkpoint
from folders import files_of, save_pipeline


@pytest.fixture(scope="module")
def folders(tiny_dit, tmp_path_factory) -> dict[str, Path]:
    """A pruned pipeline in shards by the way it came from: dense, and compact."""
    place = tmp_path_factory.mktemp("convert")
    model = save_pipeline(tiny_dit(), place / "model", max_shard_size="100KB")
    prune_checkpoint(locate(str(model)), place / "dense", None, build(saliency="magnitude"))
    to_compact(locate(str(place / "dense")), place / "compact")
    return {"dense": place / "dense", "compact": place / "compact"}


@pytest.mark.parametrize("to", ["compact", "dense"])
def test_what_is_written_is_not_written_again(to, folders, tmp_path) -> None:
    (source,) = (folder for name, folder in folders.items() if name != to)
    work = to_compact if to == "compact" else to_dense
    written: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        if what == "writing tensors" and done == total // 2:
            raise KeyboardInterrupt

    def count(what: str, done: int, total: int) -> None:
        written.extend([total] if what == "writing tensors" else [])

    with pytest.raises(KeyboardInterrupt):
        work(locate(str(source)), tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    work(locate(str(source)), tmp_path / "out", progress=count)
    assert 0 < len(written) <= written[0] // 2 + 1
    assert files_of(tmp_path / "out") == files_of(folders[to])


def test_work_of_the_other_direction_is_not_gone_on_with(folders, tmp_path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "writing tensors":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_compact(locate(str(folders["dense"])), tmp_path / "out", progress=stop)
    with pytest.raises(OutputError, match="convert to: compact → dense"):
        to_dense(locate(str(folders["compact"])), tmp_path / "out")
