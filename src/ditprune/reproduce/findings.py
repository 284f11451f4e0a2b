"""Where does our order agree with the paper's? Told by rule, from the numbers.

Two rows of one setting are compared by each metric: item by item if the metric is a mean over the
same items, else by whether the 95 % intervals overlap, as in `evaluation.results`. Rows that
should be alike agree if their intervals overlap: item by item a difference can be sure and yet too
small to matter. Images with NaN or Inf tell nothing: if a row or its dense model has some, only
the relative error is compared, because it is not measured on images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.cautions import Numbers
from ditprune.evaluation.metrics.interval import Interval, overlap
from ditprune.reproduce.studies import Claim, Study

AGREES, UNSURE, DISAGREES = "agrees", "cannot tell", "disagrees"
# A peak "near 1e-1" lies nearer to it than to 1e-2 on a logarithmic scale.
_NEAR = (10**-1.5, 10**-0.5)


@dataclass(frozen=True)
class Finding:
    """One claim of the paper at one setting by one metric.

    Args:
        verdict: `agrees`, `cannot tell` or `disagrees`.
        text: the two numbers, in words.
    """

    metric: str
    claim: str
    setting: str
    verdict: str
    text: str


def findings_of(
    study: Study, rows: Sequence[Mapping[str, Any]], values: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """Every claim of a study, at every setting, by every metric that both rows have.

    Args:
        rows: as in results.json.
        values: of each row, the numbers of its items by metric.
    """
    return [
        finding
        for setting, group in _by_setting(rows, values)
        for claim in study.claims
        if claim.first in group and claim.second in group
        for finding in _compare(claim, setting, group[claim.first], group[claim.second])
    ]


def conclusions_of_findings(study: Study, findings: Sequence[Finding]) -> list[str]:
    """The findings in words: a sentence for each metric, which names the contradictions."""
    if not study.claims:
        return ["The paper makes no claim of order here."]
    if not findings:
        return [
            "No two rows here have numbers that the paper compares; nothing can be said of its "
            "order."
        ]
    are_alike = all(claim.alike for claim in study.claims)
    by_metric = {key: [f for f in findings if f.metric == key] for key in CATALOGUE}
    return [_sentence(key, group, are_alike) for key, group in by_metric.items() if group]


def _sentence(key: str, findings: Sequence[Finding], are_alike: bool) -> str:
    total, title = len(findings), CATALOGUE[key].title
    agreeing, unsure, against = (
        [finding.text for finding in findings if finding.verdict == verdict]
        for verdict in (AGREES, UNSURE, DISAGREES)
    )
    if are_alike and against:
        return (
            f"By {title} {len(against)} of {total} that should be alike lie apart: "
            f"{'; '.join(against)}."
        )
    if are_alike:
        return f"By {title} the intervals overlap in all {total} comparisons, as they should."
    if len(agreeing) == total:
        return f"By {title} the order is the paper's in all {total} comparisons."
    said = f"By {title} the order is the paper's in {len(agreeing)} of {total} comparisons"
    if unsure:
        said += f"; {len(unsure)} cannot be told from these samples"
    if against:
        said += f"; {len(against)} the other way round: {'; '.join(against)}"
    return said + "."


def _by_setting(
    rows: Sequence[Mapping[str, Any]], values: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, Numbers]]]:
    """The pruned rows of each setting, by method."""
    spoiled = {_drawn(row) for row in rows if row["recipe"] is None and row["num_spoiled"]}
    groups: dict[str, dict[str, Numbers]] = {}
    for row, items in zip(rows, values, strict=True):
        if row["recipe"] is not None:
            are_images_whole = not row["num_spoiled"] and _drawn(row) not in spoiled
            intervals = {
                key: Interval(**measured)
                for key, measured in row["metrics"].items()
                if measured is not None and (are_images_whole or key == "relative_error")
            }
            values_of = {key: numbers for key, numbers in items.items() if key in intervals}
            groups.setdefault(setting_text(row), {})[row["name"]] = Numbers(intervals, values_of)
    yield from sorted(groups.items())


def _drawn(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """How images are drawn: what a row shares with its dense one."""
    return row["setting"]["num_inference_steps"], row["setting"]["guidance_scale"]


def setting_text(row: Mapping[str, Any]) -> str:
    """`50 %, 25 steps, guidance 1.5`: what a comparison holds fixed."""
    return ", ".join([share_text(row), *sampler_words(row)])


def share_text(row: Mapping[str, Any]) -> str:
    """`50 %` or `2:4`."""
    return row["setting"]["pattern"] or f"{100 * row['setting']['sparsity']:g} %"


def sampler_words(row: Mapping[str, Any]) -> list[str]:
    """`25 steps` and `guidance 1.5`, if they are known."""
    steps, guidance = _drawn(row)
    words = [] if steps is None else [f"{steps} steps"]
    return words if guidance is None else [*words, f"guidance {guidance:g}"]


def _compare(claim: Claim, setting: str, first: Numbers, second: Numbers) -> Iterator[Finding]:
    words = f"{claim.first} {'is like' if claim.alike else 'is better than'} {claim.second}"
    for key, metric in CATALOGUE.items():
        if key not in first.intervals or key not in second.intervals:
            continue
        better, worse = first.intervals[key], second.intervals[key]
        if claim.alike:
            verdict = AGREES if overlap(better, worse) else DISAGREES
        elif not first.is_apart(key, second):
            verdict = UNSURE
        else:
            is_lower = better.value < worse.value
            verdict = AGREES if is_lower == (metric.better == "lower") else DISAGREES
        text = (
            f"{claim.first} {better.value:.{metric.digits}f}, "
            f"{claim.second} {worse.value:.{metric.digits}f} at {setting}"
        )
        yield Finding(key, words, setting, verdict, text)


def conclusions_of_statistics(looked: Mapping[str, Any]) -> list[str]:
    """Where the histogram of |W| has its peak, and how far apart the layers lie."""
    edges, said = looked["histograms"]["edges"], []
    for role, counts in looked["histograms"]["counts"].items():
        fullest = counts.index(max(counts))
        low, high = edges[fullest], edges[fullest + 1]
        peak = (low * high) ** 0.5
        verdict = "agrees" if _NEAR[0] <= peak < _NEAR[1] else "disagrees"
        said.append(
            f"The histogram of |W| in {role} layers has its peak at {peak:.2g} "
            f"({low:.2g} to {high:.2g}): {verdict} with a peak near 1e-1."
        )
    for key, what in (("ratio", "|W|/|X|"), ("squared_ratio", "|W|²/|X|")):
        means = [row[key] for row in looked["rows"] if row[key]]
        if means:
            low, high = min(means), max(means)
            said.append(
                f"Mean {what} of a layer lies between {low:.3g} and {high:.3g} "
                f"({high / low:.3g} times as large)."
            )
    return said


def conclusions_of_importance(looked: Mapping[str, Any]) -> list[str]:
    """Whether G_out of modulation lies above that of every other layer, as in the paper."""
    modulation, others = (
        [row["g_out"] for row in looked["rows"] if (row["role"] == "modulation") is wanted]
        for wanted in (True, False)
    )
    if not modulation or not others:
        return [
            "This model has no layers of adaLN modulation beside others; the paper's contrast "
            "cannot be looked for."
        ]
    spans = (
        f"G_out of modulation layers is {min(modulation):.3g} to {max(modulation):.3g}, of all "
        f"others {min(others):.3g} to {max(others):.3g}"
    )
    above = sum(g_out > max(others) for g_out in modulation)
    if above == len(modulation):
        return [f"{spans}: agrees with the paper, every modulation layer lies above all others."]
    verdict = "disagrees" if above == 0 else "agrees in part"
    return [
        f"{spans}: {verdict}, {above} of {len(modulation)} modulation layers lie above all others."
    ]
