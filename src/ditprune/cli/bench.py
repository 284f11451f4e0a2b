"""ditprune bench: time a model's layers and step, dense and sparse, on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from ditprune.calibration.sample import Sampling
from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.cli.globs import blocks_option, read_globs
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.options import read_pipeline_options
from ditprune.cli.path_type import PATH
from ditprune.denoiser.placement import Placement, parse_size
from ditprune.errors import OutputError
from ditprune.evaluation.place import check_results_file
from ditprune.reporting import formats
from ditprune.runtime.backends import BACKENDS
from ditprune.runtime.bench.does_it_pay import BenchOptions, bench_model
from ditprune.writing.files import write_beside
from ditprune.writing.json_file import read_json
from ditprune.writing.lock import locked_folder

_PATHS = {
    "dense_fp32": "dense float32", "dense_bf16": "dense bfloat16",
    "sparse_fp32": "sparse float32", "sparse_bf16": "sparse bfloat16",
}  # fmt: skip


@click.command(cls=GroupedCommand)
@click.argument("model", metavar="MODEL|OUT")
@click.option("--sparsity", type=float, help="prune a dense model by magnitude, in memory")
@click.option("--pattern", metavar="N:M", help="likewise, keeping N of every M, as in 2:4")
@blocks_option
@click.option("--backend", metavar="NAME",
              help=f"[default: what the device has] {', '.join(BACKENDS)}")  # fmt: skip
@click.option("--device", metavar="NAME", help="[default: the backend's, cpu] cpu, cuda, cuda:1")
@click.option("--max-memory", metavar="SIZE",
              help="[default: what is free] as in 8GB; the step is timed if it fits")  # fmt: skip
@click.option("--num-tokens", type=int, help="[default: of a real call] rows that layers get")
@click.option("--height", type=int, help="[default: the pipeline's]")
@click.option("--width", type=int, help="[default: the pipeline's]")
@click.option("--pipeline-option", "pipeline_options", multiple=True, metavar="NAME=VALUE",
              help="an argument of the pipeline, as in num_frames=17; repeatable")  # fmt: skip
@click.option("--time-limit", "limit_s", type=float, default=120, show_default=True,
              help="seconds for all timings, past two runs of each")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="machine-readable, everything")
@click.option("-o", "--out", type=PATH, metavar="results.json",
              help="add the table to results of ditprune evaluate, for its report")  # fmt: skip
def bench(
    model: str, device: str | None, max_memory: str | None, height: int | None,
    width: int | None, pipeline_options: tuple[str, ...], as_json: bool, out: Path | None,
    blocks: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Time MODEL's own layers and step, dense and sparse, on this machine.

    Says for each distinct layer and for a whole denoiser call whether sparse is faster.
    """
    if out is not None:
        _check_results(out)
    if device is not None:
        Placement.of(device)  # refuses a device that is not there
    sampling = Sampling(
        num_samples=1, batch_size=1, height=height, width=width,
        pipeline_options=read_pipeline_options(pipeline_options),
    )  # fmt: skip
    bench_options = BenchOptions(
        device=device,
        max_memory=parse_size(max_memory),
        sampling=sampling,
        blocks=read_globs("blocks", blocks),
        **options,
    )
    with console.progress() as progress, _held(out):
        times = bench_model(locate(model), bench_options, progress)
        if out is not None:
            _check_results(out)  # again: it is what is there now that the table is added to
            text = json.dumps({**read_json(out), "bench": times}, indent=1, allow_nan=False)
            with write_beside(out) as part:
                part.write_text(text + "\n", encoding="utf-8")
    if out is not None and not as_json:
        console.is_done(out)
    if as_json:
        click.echo(json.dumps(times, indent=1, allow_nan=False))
    else:
        console.show(_lines(times))


def _check_results(out: Path) -> None:
    if not out.is_file():
        raise OutputError(
            f"--out {out}: no such file; expected a results.json of ditprune evaluate, to which "
            "the table is added (--json prints it alone)"
        )
    try:
        check_results_file(out)
    except OutputError as error:
        raise OutputError(f"--out {error}") from None


def _held(out: Path | None) -> AbstractContextManager[None]:
    """Keep evaluations and other timings out of the folder of the results."""
    return nullcontext() if out is None else locked_folder(out.absolute().parent)


def _lines(times: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(times["layers"])
    for row in times["layers"]:
        yield from _reasons(row["layer"], row["reasons"])
    yield f"all layers: {_in_words(times['layers_together'])}"
    for name, step in times["steps"].items():
        title = f"a whole call{f' of {name}' if len(times['steps']) > 1 else ''}"
        if "pays" not in step:
            yield f"{title}: not timed: {step['reason']}"
            continue
        yield f"{title}: {_in_words(step)}"
        held = (f"{_PATHS[p]} {formats.size(b)}" for p, b in step["memory_bytes"].items())
        yield f"{title}, memory of its weights: {', '.join(held)}"
        yield from _reasons(title, step["reasons"])
    on_disk = formats.size(times["size_bytes_on_disk"])
    form = "compact" if times["is_compact"] else "dense"
    yield f"on disk: {on_disk}, {form}; running sparse changes no file"
    yield from times["notes"]


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    lines = [["layer", "shape", "tokens", "zeros", *(f"{t} ms" for t in _PATHS.values()), "pays"]]
    for row in rows:
        more = f" and {row['num_layers'] - 1} more" if row["num_layers"] > 1 else ""
        path_ms = (row[f"{path}_ms"] for path in _PATHS)
        pays = "pays" if row["pays"] else "does not pay"
        lines.append([
            f"{row['layer']}{more}", "×".join(map(str, row["shape"])), str(row["num_tokens"]),
            f"{row['sparsity']:.0%}", *("–" if ms is None else f"{ms:.3g}" for ms in path_ms),
            f"{pays}: {_PATHS[row['best']]}",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # a table cut to the width of the screen would hide the names
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _in_words(verdict: Mapping[str, Any]) -> str:
    """A verdict in words: the gain within each dtype, then the best setting of all."""
    times = ", ".join(
        f"{title} {verdict[f'{path}_ms']:.3g} ms"
        for path, title in _PATHS.items()
        if verdict[f"{path}_ms"] is not None
    )
    gains = [
        f"{verdict[key]:.2f}× in {dtype}"
        for dtype, key in (("float32", "gain_fp32"), ("bfloat16", "gain_bf16"))
        if verdict[key] is not None
    ]
    pays = "pays" if verdict["pays"] else "does not pay"
    gained = f" (sparse over dense: {', '.join(gains)})" if gains else ""
    return f"{pays}; {times}{gained}; best setting: {_PATHS[verdict['best']]}"


def _reasons(title: str, reasons: Mapping[str, str]) -> Iterator[str]:
    return (f"{title}: no {_PATHS[path]}: {reason}" for path, reason in reasons.items())
