"""How much memory is free now, on a GPU or on this machine within the limits of its cgroups?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch


class _Control(NamedTuple):
    """The file names of one version of control groups."""

    folder: str
    limit: str
    used: str
    files: tuple[str, str]  # of memory.stat: pages of files, which the system frees when needed


_CONTROLS = {  # by the controllers on a line of /proc/self/cgroup
    "": _Control("", "memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": _Control(
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}  # fmt: skip


def free_bytes(device: str) -> int:
    """Memory that can be allocated now, in bytes."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return min([psutil.virtual_memory().available, *limits_left()])


def limits_left(
    proc: Path = Path("/proc"), mounted: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What each limit on this process's control groups leaves, in bytes."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        control = _CONTROLS.get(controllers)
        if control is None:
            continue
        root = mounted / control.folder
        # In a container the path may be the host's; then the root it sees is its own group.
        group = root / path.lstrip("/")
        for folder in (group, *(p for p in group.parents if p.is_relative_to(root))):
            limit, used = _text(folder / control.limit), _text(folder / control.used)
            if limit.strip().isdigit() and used.strip().isdigit():
                stat = _numbers(folder / "memory.stat")
                files = sum(stat.get(name, 0) for name in control.files)
                yield max(0, int(limit) - max(0, int(used) - files))


def _numbers(file: Path) -> dict[str, int]:
    """The second word of each line by the first, where it is a number."""
    lines = (line.split() for line in _text(file).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _text(file: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
