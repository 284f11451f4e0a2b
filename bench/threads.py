"""How should OpenMP's threads wait, on a machine of one's own and on a shared one?

    python bench/threads.py [--rounds 3] [--avx2]

Draws 60 images with the bundled model in a fresh process for each setting: alone, and beside one
process that multiplies 2048×2048 matrices on as many threads in a loop. The settings are taken in
turn, so that a drift of the machine meets all of them. Times are of drawing alone, as medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAWING = """
import sys, time, warnings
warnings.simplefilter("ignore")
import torch
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
torch.set_num_threads(int(sys.argv[1]))
pipe = load_pipeline(locate("bundled"), Placement.of("cpu"))
pipe.set_progress_bar_config(disable=True)
def draw(num_images, num_steps):
    labels = [i % 10 for i in range(num_images)]
    generators = [torch.Generator().manual_seed(i) for i in range(num_images)]
    pipe(labels, generator=generators, guidance_scale=1.5, num_inference_steps=num_steps)
draw(20, 2)
begin = time.monotonic()
draw(60, 25)
print(time.monotonic() - begin, torch.backends.cpu.get_cpu_capability())
"""
NEIGHBOUR = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
a, b = torch.rand(2, 2048, 2048)
while True:
    a @ b
"""
OWN = "libgomp's own"
SETTINGS: dict[str, dict[str, str]] = {
    OWN: {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    **{
        f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)}
        for n in (1000, 3000, 5000, 8000, 10000, 30000)
    },
}
SLOW = {OWN, "GOMP_SPINCOUNT=30000"}  # beside a neighbour; measured once there
# What limits the libraries beneath torch to AVX2.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}  # fmt: skip
OURS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
CLEAN = {name: value for name, value in os.environ.items() if name not in OURS}


def start(code: str, num_threads: int, more: dict[str, str]) -> subprocess.Popen[str]:
    """A process in a session of its own, as another user's would be."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(num_threads)], stdout=subprocess.PIPE, text=True,
        env=CLEAN | more, preexec_fn=first_in_line,
    )  # fmt: skip


def first_in_line() -> None:
    """Before the machine's other work, where Linux groups processes by session and root asks."""
    os.setsid()
    group = Path("/proc/self/autogroup")
    if group.exists() and os.geteuid() == 0:
        group.write_text("-20")


@contextmanager
def neighbour(num_threads: int) -> Iterator[None]:
    process = start(NEIGHBOUR, num_threads, {})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def drawing_s(num_threads: int, more: dict[str, str]) -> tuple[float, str]:
    process = start(DRAWING, num_threads, more)
    out, _ = process.communicate()
    seconds, capability = out.split()
    return float(seconds), capability


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--avx2", action="store_true")
    options = parser.parse_args()
    num_threads, more = os.cpu_count() or 1, AVX2 if options.avx2 else {}
    alone: dict[str, list[float]] = {name: [] for name in SETTINGS}
    beside: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for number in range(options.rounds):
        print(f"round {number}: load average {os.getloadavg()[0]:.2f}", file=sys.stderr)
        for name, setting in SETTINGS.items():
            seconds, capability = drawing_s(num_threads, setting | more)
            alone[name].append(seconds)
        with neighbour(num_threads):
            for name, setting in SETTINGS.items():
                if number and name in SLOW:
                    continue
                beside[name].append(drawing_s(num_threads, setting | more)[0])
        print(alone, beside, file=sys.stderr, flush=True)
    own = statistics.median(alone[OWN])
    print(f"{num_threads} threads, {capability}, {options.rounds} rounds\n")
    print("| setting | alone s | of libgomp's own | beside s | of alone |\n|---|---|---|---|---|")
    for name in SETTINGS:
        quiet, busy = statistics.median(alone[name]), statistics.median(beside[name])
        print(f"| {name} | {quiet:.2f} | {quiet / own:.2f} | {busy:.2f} | {busy / quiet:.1f}× |")


if __name__ == "__main__":
    main()
