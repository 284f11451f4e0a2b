"""Free memory is the machine's or what the control groups leave, whichever is less."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ditprune.runtime.bench import free_memory
from ditprune.runtime.bench.free_memory import free_bytes, limits_left


def proc_of(tmp_path: Path, groups: str) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups, encoding="ascii")
    return tmp_path / "proc"


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text, encoding="ascii")


def test_the_smallest_limit_on_the_way_up_counts_without_pages_of_files(tmp_path) -> None:
    proc, mounted = proc_of(tmp_path, "0::/a/b\n"), tmp_path / "cgroup"
    group(mounted)
    group(mounted / "a", max="1000\n", current="900\n", stat="anon 5\ninactive_file 300\n")
    group(mounted / "a" / "b", max="max\n", current="700\n", stat="")
    assert min(limits_left(proc, mounted)) == 400
    group(mounted / "a" / "b", max="800\n", current="700\n", stat="active_file 50\n")
    assert min(limits_left(proc, mounted)) == 150
    group(mounted / "a" / "b", current="900\n", stat="")
    assert min(limits_left(proc, mounted)) == 0


def test_the_first_version_in_a_container_that_sees_its_own_group_as_the_root(tmp_path) -> None:
    proc = proc_of(tmp_path, "5:cpu,cpuacct:/\n4:memory:/docker/1f\n0::/\n")
    group(
        tmp_path / "cgroup" / "memory", limit_in_bytes="1000\n", usage_in_bytes="600\n",
        stat="inactive_file 1\ntotal_inactive_file 100\n",
    )  # fmt: skip
    assert min(limits_left(proc, tmp_path / "cgroup")) == 500


def test_without_limits_nothing_bounds(tmp_path) -> None:
    assert list(limits_left(tmp_path, tmp_path)) == []


@pytest.mark.parametrize(("host", "limit"), [(5, 9), (9, 5)])
def test_the_smaller_of_both_can_be_taken(host, limit, monkeypatch) -> None:
    machine = SimpleNamespace(available=host)
    monkeypatch.setattr(free_memory.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(free_memory, "limits_left", lambda: iter([limit]))
    assert free_bytes("cpu") == 5
