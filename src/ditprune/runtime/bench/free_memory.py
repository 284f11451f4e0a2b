"""How much memory can be taken now: of a device, or of this machine and what limits us on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

UNKNOWN = 1 << 62  # bytes, where nothing tells


class Control(NamedTuple):
    """Where a version of control groups keeps its numbers."""

    folder: str
    limit: str
    used: str
    files: tuple[str, str]  # of memory.stat: pages of files, which are given back when asked for


_CONTROLS = {  # by the controllers on a line of /proc/self/cgroup
    "": Control("", "memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": Control(
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}  # fmt: skip


def free_bytes(device: str) -> int:
    """Memory that can be taken now, in bytes; all that the machine has where it tells no more."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return min(host_free_bytes(), *limits_left())


def host_free_bytes(proc: Path = Path("/proc")) -> int:
    """Free memory of the machine, whatever limits this process."""
    available = _numbers(proc / "meminfo").get("MemAvailable:")
    if available is not None:
        return available * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def limits_left(
    proc: Path = Path("/proc"), mounted: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What each limit on this process's control groups leaves, in bytes, and `UNKNOWN`."""
    yield UNKNOWN
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        control = _CONTROLS.get(controllers)
        if control is None:
            continue
        root = mounted / control.folder
        # In a container the path may be the host's, and its own group the root that it sees.
        own = root / path.lstrip("/")
        for group in (own, *(parent for parent in own.parents if parent.is_relative_to(root))):
            limit, used = _text(group / control.limit), _text(group / control.used)
            if limit.strip().isdigit() and used.strip().isdigit():
                stat = _numbers(group / "memory.stat")
                files = sum(stat.get(name, 0) for name in control.files)
                yield max(0, int(limit) - max(0, int(used) - files))


def _numbers(file: Path) -> dict[str, int]:
    """The second word of each line, where it is a number, by the first."""
    lines = (line.split() for line in _text(file).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _text(file: Path) -> str:
    """What a file says; nothing where it cannot be read."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
