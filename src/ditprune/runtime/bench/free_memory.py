"""How much memory is free now, on a GPU or on this machine within the limits of its cgroups?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

# By the controllers on a line of /proc/self/cgroup, for version 2 and 1: the folder, the files with
# the limit and the use, and how memory.stat begins the names of its sums over the whole group.
_CONTROLS = {
    "": ("", "memory.max", "memory.current", ""),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


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
        if controllers not in _CONTROLS:
            continue
        name, limit_file, used_file, prefix = _CONTROLS[controllers]
        root = mounted / name
        # In a container the path may be the host's; then the root it sees is its own group.
        group = root / path.lstrip("/")
        for folder in (group, *(p for p in group.parents if p.is_relative_to(root))):
            limit, used = _text(folder / limit_file), _text(folder / used_file)
            if limit.strip().isdigit() and used.strip().isdigit():
                stat = re.findall(r"^(\S+) (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                # The system frees the pages of files when needed.
                names = (f"{prefix}inactive_file", f"{prefix}active_file")
                files = sum(int(number) for name, number in stat if name in names)
                yield max(0, int(limit) - max(0, int(used) - files))


def _text(file: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
