"""A study whose rows are pruned models: makes the rows that are missing, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ditprune.reproduce.findings import findings_of, sentences, to_json
from ditprune.reproduce.rows import Row
from ditprune.reproduce.studies import Study
from ditprune.reproduce.workbench import Run, make_row, open_workbench

# What of the protocol stands beside each row.
_OF_A_ROW = ("num_inference_steps", "guidance_scale")


def measure_rows(run: Run, study: Study, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What is kept of every row; each is kept as soon as it is made."""
    records: list[dict[str, Any]] = []
    for _, group in groupby(rows, key=lambda row: row.protocol):
        own = list(group)
        missing = [row for row in own if run.kept.read_row(row) is None]
        if missing:
            samplings = [row.sampling for row in missing if row.recipe is not None]
            bench = open_workbench(run, own[0], samplings)
        for row in own:
            record = run.kept.read_row(row)
            if record is None:
                record = make_row(bench, row)
                run.kept.write_row(row, record)
            records.append(record)
            run.progress(f"{study.name}: rows", len(records), len(rows))
        bench = None  # type: ignore[assignment]  # the model can leave before the next one comes
    return records


def results_of_rows(
    run: Run, study: Study, rows: Sequence[Row], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The part of results.json that comes from rows."""
    shown = [_row(row, record) for row, record in zip(rows, records, strict=True)]
    findings = findings_of(study, shown, [record["values"] for record in records])
    protocol = {k: v for k, v in records[0]["protocol"].items() if k not in _OF_A_ROW}
    return {
        "protocol": protocol,
        "metrics": records[0]["metrics"],
        "rows": shown,
        "findings": to_json(findings),
        "conclusions": sentences(study, findings),
    }


def _row(row: Row, record: Mapping[str, Any]) -> dict[str, Any]:
    model = record["model"]
    words = ("recipe", "sparsity", "metrics", "warnings", "error_by_timestep", "accounting")
    chosen = [target["granularity"] for target in model["targets"]]
    return {
        "name": row.method,
        "setting": row.setting() | {word: record["protocol"][word] for word in _OF_A_ROW},
        "granularity": {name: chosen.count(name) for name in dict.fromkeys(chosen)},
        **{word: model[word] for word in words},
        "num_spoiled": model.get("num_spoiled", 0),  # absent in rows kept before it was counted
    }
