"""ditprune report: one HTML file from the results of an evaluation."""

from __future__ import annotations

from pathlib import Path

import click

from ditprune.cli import console
from ditprune.reporting.load import load
from ditprune.reporting.page import MARK, render
from ditprune.reporting.verdict import judge
from ditprune.writing.files import check_file, write_beside


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE",
    help="[default: DIR/report.html]",
)  # fmt: skip
def report(folder: Path, out: Path | None) -> None:
    """Make one self-contained HTML page of the results that `ditprune evaluate -o DIR` wrote.

    It reads results.json only, so it can be made again without the models. A page that is there
    is replaced; any other file is not.
    """
    results = load(folder)
    file = out or (folder if folder.is_dir() else folder.parent) / "report.html"
    check_file(file, overwrite=_is_page(file))
    page = render(results)
    with write_beside(file) as part:
        part.write_text(page, encoding="utf-8")
    dense, *pruned = results["models"]
    for model in pruned:
        verdict = judge(model, dense, results["metrics"])
        console.out.print(console.printable(f"{model['name']}: {verdict.text}"), markup=False)
    console.out.print(f"page: {file}", markup=False)


def _is_page(file: Path) -> bool:
    """Whether a report is there, which a new one may replace."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(MARK)) == MARK.encode()
