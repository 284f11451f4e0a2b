"""ditprune report: one HTML file from the results of an evaluation."""

from __future__ import annotations

from pathlib import Path

import click

from ditprune.cli.groups import GroupedCommand
from ditprune.cli.path_type import PATH


@click.command(cls=GroupedCommand)
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "-o", "--out", type=PATH, metavar="FILE",
    help="[default: DIR/report.html]",
)  # fmt: skip
def report(folder: Path, out: Path | None) -> None:
    """Make one self-contained HTML page of the results that `ditprune evaluate -o DIR` wrote.

    It reads results.json only, so it can be made again without the models. A page that is there
    is replaced; any other file is not.
    """
    from ditprune.api.folders import report as write_page
    from ditprune.cli import console
    from ditprune.reporting.load import load
    from ditprune.reporting.notes import told_of, unavailable_notes
    from ditprune.reporting.verdict import verdicts_of

    page = write_page(folder, out)
    console.is_done(page)
    results = load(folder)
    for name, verdict in verdicts_of(results).items():
        console.show([f"{name}: {verdict.text}"])
    told, unavailable = told_of(results["models"]), unavailable_notes(results["metrics"])
    console.show(f"{names}: {text}" for names, text in told)
    console.show(f"not measured: {titles}: {reason}" for titles, reason in unavailable)
    console.show([f"page: {page}"])
