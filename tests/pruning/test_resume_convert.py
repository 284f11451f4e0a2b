"""A conversion killed at any moment: the same command goes on, and OUT is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.errors import OutputError
from ditprune.method.words import build
from ditprune.pruning.convert import to_compact, to_dense
from ditprune.pruning.loop import prune_checkpoint
from folders import files_of, save_pipeline
from killed import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.getbasetemp()) as server:
        yield server


@pytest.fixture(scope="module")
def folders(tiny_dit, tmp_path_factory) -> dict[str, Path]:
    """A pruned pipeline in shards by the way it came from: dense, and compact."""
    place = tmp_path_factory.mktemp("convert")
    model = save_pipeline(tiny_dit(), place / "model", max_shard_size="100KB")
    prune_checkpoint(locate(str(model)), place / "dense", None, build(saliency="magnitude"))
    to_compact(locate(str(place / "dense")), place / "compact")
    return {"dense": place / "dense", "compact": place / "compact"}


@pytest.mark.parametrize("to", ["compact", "dense"])
def test_a_kill_before_steps_of_the_file_system(to, folders, server, tmp_path) -> None:
    (source,) = (folder for name, folder in folders.items() if name != to)
    expected = files_of(folders[to])
    place = tmp_path / "place"
    out = place / "out"
    line: list[object] = ["convert", source, "--to", to, "-o", out]
    place.mkdir()
    server.start(line, last_step=0)
    code, num_steps = server.finish()
    assert code == 0
    assert files_of(out) == expected
    for step in (1, 2, *range(3, num_steps - 5, 15), *range(num_steps - 5, num_steps + 1)):
        shutil.rmtree(place)
        place.mkdir()
        server.start(line, last_step=step)
        assert server.finish()[0] == -9
        assert not out.exists() or files_of(out) == expected
        server.start(line)
        assert server.finish()[0] == 0
        assert files_of(out) == expected
        assert [path.name for path in place.iterdir()] == ["out"]


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
