"""Claim: what 2:4, shrinking, compiling and calibrating give and cost on an NVIDIA GPU.

    python bench/gpu.py --out gpu.json [--stages 1,2,3,5] [--limit SECONDS | --limit 1=75,2=40]

Stages: 1 products, 2 blocks of FLUX, eager, 3 compiled, 5 calibration and selection; 4 is kept for
a later engine. Every row is written as soon as it is done, and what fails becomes a row with its
reason. `--resume` keeps the rows of --out and makes the others; the bench itself goes on like that
in a new process where a fault has ended the device's context. `--device cpu --tiny` is a dry run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_measure import Clock, Log, LostDeviceError, reason_of

LIMITS_S = {1: 75.0, 2: 45.0, 3: 75.0, 5: 30.0}


def environment(device: str) -> dict[str, Any]:
    """The machine and the versions, each where it is known."""
    known: dict[str, Callable[[], Any]] = {
        "python": platform.python_version,
        "torch": lambda: torch.__version__,
        "diffusers": lambda: __import__("diffusers").__version__,
        "triton": lambda: __import__("triton").__version__,
        "cuda": lambda: torch.version.cuda,
        "cusparselt": torch.backends.cusparselt.version,
        "cusparselt_algorithms": torch.backends.cusparselt.get_max_alg_id,
        "product": lambda: str(torch.ops.aten._cslt_sparse_mm.default._schema),
    }
    if device.startswith("cuda"):
        known |= {
            "name": torch.cuda.get_device_name,
            "capability": torch.cuda.get_device_capability,
            "l2_mb": lambda: torch.cuda.get_device_properties(0).L2_cache_size / 1e6,
        }
    found = {"device": device, "notes": NOTES}
    for name, read in known.items():
        try:
            found[name] = read()
        except Exception as error:
            found[name] = reason_of(error)
    return found


NOTES = (
    "ms: median of 9 groups of 4 calls between CUDA events, paths in turn, inputs in rotation; the "
    "weight may stay in the L2. In stage 1 the host is hidden behind a sleeping device, eager_ms "
    "has it; in stages 2 and 3 ms has it, and device_ms only past some hundred launches. Bias is "
    "included but for fp8. gain is dense over path, dense at random weights without zeros. "
    "Modulation stays dense in blocks."
)


def stage(number: int) -> Callable[[Log, Clock, str, bool], None]:
    """What runs a stage, imported only now: what one lacks is no fault of the others."""
    if number == 1:
        import gpu_products

        return gpu_products.run
    if number in (2, 3):
        import gpu_blocks

        return partial(gpu_blocks.run, is_compiled=number == 3)
    import gpu_calibration

    return gpu_calibration.run


def run(log: Log, args: argparse.Namespace) -> None:
    """All stages that are asked for, each in its time. Raises LostDeviceError."""
    spent = log.content["spent_s"]
    for number in args.stages:
        clock = Clock(args.limits[number], spent.get(str(number), 0.0))
        try:
            stage(number)(log, clock, args.device, args.tiny)
        except LostDeviceError:
            raise
        except Exception as error:
            log.rows.append({"stage": number, "name": "stage", "failed": reason_of(error)})
            print(f"[{number}] stage: {reason_of(error)}", flush=True)
        finally:
            spent[str(number)] = round(clock.spent_s, 1)
            log.write()


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each row."""
    lines = []
    for row in rows:
        said = row.get("failed") or row.get("refused")
        lines.append(f"{row['stage']} {row['name']:<34} " + (f"– {said}" if said else _cells(row)))
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> str:
    if isinstance(row.get("ms"), dict):
        cells = [f"dense {row['ms'].get('dense', float('nan')):.4f} ms"]
        cells += [f"{path} ×{gain:.2f}" for path, gain in row["gain"].items()]
        chosen = row["search"].get("searched", {}).get("choice")
        cells += [f"alg {tuple(chosen)}"] if chosen else []
        cells += [f"WRONG {path}" for path, right in row["is_right"].items() if not right]
        cells += [f"no {path}" for path in row["refusals"]]
        return " · ".join(cells)
    names = {key for key, value in row.items() if isinstance(value, float) and key != "row_s"}
    return " · ".join(f"{key} {row[key]:.4g}" for key in row if key in names)


def _limits(text: str | None) -> dict[int, float]:
    """`90`, or `1=75,3=60`."""
    if text is None:
        return dict(LIMITS_S)
    if "=" not in text:
        return dict.fromkeys(LIMITS_S, float(text))
    pairs = [pair.split("=") for pair in text.split(",")]
    return LIMITS_S | {int(number): float(seconds) for number, seconds in pairs}


def _stages(text: str) -> list[int]:
    numbers = [int(one) for one in text.split(",")]
    unknown = [one for one in numbers if one not in LIMITS_S]
    if unknown:
        raise argparse.ArgumentTypeError(f"no stage {unknown[0]}; there are 1, 2, 3 and 5")
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="rows, after each of them")
    parser.add_argument("--stages", type=_stages, default="1,2,3,5", metavar="1,2", help="in order")
    parser.add_argument("--limit", metavar="SECONDS", help="of each stage, or 1=75,2=40")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a dry run")
    parser.add_argument("--resume", action="store_true", help="keep the rows of --out")
    args = parser.parse_args()
    args.limits = _limits(args.limit)
    begun = time.monotonic()
    log = Log(args.out, goes_on=args.resume)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("gpu.py: torch finds no CUDA device; --device cpu --tiny is a dry run")
    log.content["environment"] = environment(args.device)
    try:
        run(log, args)
    except LostDeviceError as error:
        print(f"the device is lost ({error}); going on in a new process", flush=True)
        if args.out is not None:
            again = [one for one in sys.argv if one != "--resume"]
            os.execv(sys.executable, [sys.executable, *again, "--resume"])
    print(table(log.rows))
    print(
        f"{log.content['environment'].get('name', args.device)}: {time.monotonic() - begun:.0f} s"
    )


if __name__ == "__main__":
    main()
