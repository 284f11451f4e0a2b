"""What the stages of `gpu.py` share: rows that cannot break a run, times, and 2:4 weights."""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Any]
_NUM_ROUNDS = 9
_CALLS_IN_ROUND = 4
_SLEEP_CYCLES = 6_000_000  # about 3 ms, in which the host queues a round of a few launches
_SHORT_SLEEP_CYCLES = 1_000_000
_LEAST_S = 0.5  # no row begins with less
_ROTATED_BYTES = 160 << 20  # of inputs, more than any L2


class Late(BaseException):
    """The time of a row or of its stage is over; no handler of a library catches it."""


class LostDeviceError(Exception):
    """The device answers nothing any more; only another process goes on."""


class RefusedError(Exception):
    """A row that cannot be on this device, with the reason."""


class Log:
    """The rows of a run, in a JSON file after each of them.

    Args:
        file: where they lie; None keeps them in memory.
        goes_on: whether rows that lie there are kept and not made again.
    """

    def __init__(self, file: Path | None, goes_on: bool = False) -> None:
        self._file = file
        self.content: dict[str, Any] = {"environment": {}, "spent_s": {}, "rows": []}
        if goes_on and file is not None and file.is_file():
            self.content = json.loads(file.read_text(encoding="utf-8"))
            running = self.content.pop("running", None)
            if running:
                self._add(*running, {"failed": "the process ended in it"})

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    def row(
        self, stage: int, name: str, work: Callable[[], Mapping[str, Any]], limit_s: float
    ) -> dict[str, Any]:
        """Make one row; an exception becomes its reason. Raises LostDeviceError."""
        for row in self.rows:
            if (row["stage"], row["name"]) == (stage, name):
                return row
        self.content["running"] = [stage, name]
        self.write()
        begun = time.monotonic()
        try:
            with within(limit_s):
                found = dict(work())
        except RefusedError as error:
            found = {"refused": str(error)}
        except Late:
            late = f"not done in {limit_s:.0f} s" if limit_s > _LEAST_S else "no time was left"
            found = {"failed": late}
        except Exception as error:
            found = {"failed": reason_of(error)}
        self.content.pop("running")
        row = self._add(stage, name, found | {"row_s": round(time.monotonic() - begun, 2)})
        self.write()
        check_device()
        return row

    def _add(self, stage: int, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
        row = {"stage": stage, "name": name, **found}
        self.rows.append(row)
        said = found.get("failed") or found.get("refused")
        print(f"[{stage}] {name}: {said or short(found)}", flush=True)
        return row

    def write(self) -> None:
        if self._file is not None:
            part = self._file.with_name(f".{self._file.name}.part")
            part.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
            part.replace(self._file)


class Clock:
    """What is left of a stage's time."""

    def __init__(self, limit_s: float, spent_s: float = 0.0) -> None:
        self._limit_s, self._begun = limit_s, time.monotonic() - spent_s

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._begun

    @property
    def left_s(self) -> float:
        return self._limit_s - self.spent_s


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Late in the block once its time is over."""

    def ring(*_: Any) -> None:
        raise Late

    if seconds <= _LEAST_S:
        raise Late
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_device() -> None:
    """Raise LostDeviceError where an earlier fault ended the device's context."""
    if torch.cuda.is_available():
        try:
            torch.ones(1, device="cuda").item()
        except RuntimeError as error:
            raise LostDeviceError(reason_of(error)) from None


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'says nothing'}"[:300]


def short(found: Mapping[str, Any]) -> str:
    """A row's numbers in a few words."""
    words = [f"{key} {value}" for key, value in found.items() if isinstance(value, (int, float))]
    times = found.get("ms")
    if isinstance(times, dict):
        words = [f"{path} {ms:.3f}" for path, ms in times.items()] + words
    return ", ".join(words)[:200]


def medians(paths: Mapping[str, Sequence[Work]], device: str, hides_host: bool) -> dict[str, float]:
    """The median milliseconds of one call of each path, in turn, over its works in rotation.

    Args:
        hides_host: whether the device sleeps while a round is queued, so that it alone is timed.
    """
    for works in paths.values():
        for work in works[:2]:
            work()
    groups: dict[str, list[float]] = {path: [] for path in paths}
    for number in range(_NUM_ROUNDS):
        sleep = _SLEEP_CYCLES if hides_host else 0
        for path, ms in _round(paths, device, sleep, number).items():
            groups[path].append(ms)
    return {path: statistics.median(found) for path, found in groups.items()}


def _round(
    paths: Mapping[str, Sequence[Work]], device: str, sleep: int, number: int,
    num_calls: int = _CALLS_IN_ROUND,
) -> dict[str, float]:  # fmt: skip
    """Milliseconds of one call, by path, from one group of calls each."""
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.synchronize()
        if sleep:
            torch.cuda._sleep(sleep)
    marks = {}
    for path, works in paths.items():
        begin = _mark(is_cuda)
        for call in range(num_calls):
            works[(number * num_calls + call) % len(works)]()
        marks[path] = (begin, _mark(is_cuda))
    if is_cuda:
        torch.cuda.synchronize()
        return {path: a.elapsed_time(b) / num_calls for path, (a, b) in marks.items()}
    return {path: 1e3 * (b - a) / num_calls for path, (a, b) in marks.items()}


def _mark(is_cuda: bool) -> Any:
    if not is_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def quick_ms(work: Work, device: str) -> float:
    """The best of three times of two calls; enough to choose between algorithms."""
    return min(_round({"": [work]}, device, _SHORT_SLEEP_CYCLES, 0, 2)[""] for _ in range(3))


def seconds(work: Work, device: str) -> float:
    """Of one run, the device waited for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def num_rotated(size_bytes: int) -> int:
    """How many inputs of a size the L2 cannot hold together."""
    return max(2, min(12, _ROTATED_BYTES // max(1, size_bytes)))


@torch.no_grad()
def prune_two_of_four_(weight: Tensor) -> Tensor:
    """Zero two of each four inputs of a weight [C_out, C_in], at random, in place."""
    groups = weight.view(-1, 4)
    order = torch.rand(groups.shape, device=weight.device).argsort(1)
    groups.scatter_(1, order[:, :2], 0)
    return weight


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, in float32."""
    expected = expected.float()
    return ((found.float() - expected).norm() / expected.norm()).item()


def free() -> None:
    """Give back what nobody holds, and begin the peak anew."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
