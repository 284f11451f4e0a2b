"""How much memory does drawing take at most? What a GPU allocates, or what the process holds."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far; of what is not known nothing is forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _RESET.write_text("5", encoding="ascii")  # by proc(5): the peak of the resident memory
    except OSError:
        return


def peak_bytes(device: torch.device) -> int | None:
    """The peak since then; None for a device, or a system, that does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu" or not _RESET.exists():
        return None
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    kibibytes = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((int(number) * 1024 for number in kibibytes), None)
