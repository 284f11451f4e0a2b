"""Where our order agrees with the paper's and where it does not: by rule, from the numbers.

Two rows of one setting are compared by each metric: item by item where the metric is a mean over
the same items, else by whether the 95 % intervals overlap (as `evaluation.cautions` does). What
should be alike agrees where intervals overlap: item by item a difference can be sure and yet too
small to matter. Images with NaN or Inf tell nothing: where a row or its dense model has some, only
the relative error, which is not of images, is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.cautions import Numbers
from ditprune.evaluation.metrics.interval import Interval, overlap
from ditprune.reproduce.studies import Claim, Study

AGREES, UNSURE, DISAGREES = "agrees", "cannot tell", "disagrees"


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
    found: list[Finding] = []
    for setting, group in _by_setting(rows, values):
        for claim in study.claims:
            if claim.one in group and claim.other in group:
                found += _compare(claim, setting, group[claim.one], group[claim.other])
    return found


def sentences(study: Study, findings: Sequence[Finding]) -> list[str]:
    """What the findings come to: a sentence for each metric, and one for each contradiction."""
    said = []
    for key in CATALOGUE:
        own = [one for one in findings if one.metric == key]
        if own:
            said.append(_sentence(key, own, all(claim.alike for claim in study.claims)))
    if not findings:
        said.append(
            "No two rows here have numbers that the paper compares; nothing can be said of its "
            "order."
            if study.claims
            else "The paper makes no claim of order here."
        )
    return said


def _sentence(key: str, own: Sequence[Finding], are_alike: bool) -> str:
    counts = {v: sum(one.verdict == v for one in own) for v in (AGREES, UNSURE, DISAGREES)}
    total, title = len(own), CATALOGUE[key].title
    if are_alike:
        return _sentence_of_alike(title, own, counts[DISAGREES])
    if counts[AGREES] == total:
        return f"By {title} the order is the paper's in all {total} comparisons."
    said = f"By {title} the order is the paper's in {counts[AGREES]} of {total} comparisons"
    if counts[UNSURE]:
        said += f"; {counts[UNSURE]} cannot be told from these samples"
    if counts[DISAGREES]:
        said += f"; {counts[DISAGREES]} the other way round: {_against(own)}"
    return said + "."


def _sentence_of_alike(title: str, own: Sequence[Finding], num_apart: int) -> str:
    if not num_apart:
        return f"By {title} the intervals overlap in all {len(own)} comparisons, as they should."
    return f"By {title} {num_apart} of {len(own)} that should be alike lie apart: {_against(own)}."


def _against(own: Sequence[Finding]) -> str:
    return "; ".join(one.text for one in own if one.verdict == DISAGREES)


def _by_setting(
    rows: Sequence[Mapping[str, Any]], values: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, Numbers]]]:
    """The rows of each setting, by method."""

    def setting(pair: tuple[Mapping[str, Any], Any]) -> str:
        return setting_text(pair[0])

    spoiled = {_drawn(row) for row in rows if row["recipe"] is None and row["num_spoiled"]}
    pruned = [pair for pair in zip(rows, values, strict=True) if pair[0]["recipe"] is not None]
    for text, group in groupby(sorted(pruned, key=setting), setting):
        yield text, {row["name"]: _found(row, own, _drawn(row) in spoiled) for row, own in group}


def _drawn(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """How images are drawn: what a row shares with its dense one."""
    return row["setting"]["num_inference_steps"], row["setting"]["guidance_scale"]


def setting_text(row: Mapping[str, Any]) -> str:
    """`50 %, 25 steps, guidance 1.5`: what a comparison holds fixed."""
    own = row["setting"]
    share = own["pattern"] or f"{100 * own['sparsity']:g} %"
    steps, guidance = own["num_inference_steps"], own["guidance_scale"]
    more = [f"{steps} steps"] if steps is not None else []
    more += [f"guidance {guidance:g}"] if guidance is not None else []
    return ", ".join([share, *more])


def _found(row: Mapping[str, Any], values: Mapping[str, Any], is_dense_spoiled: bool) -> Numbers:
    are_images_whole = not (row["num_spoiled"] or is_dense_spoiled)
    known = {
        key: Interval(**one)
        for key, one in row["metrics"].items()
        if one is not None and (are_images_whole or key == "relative_error")
    }
    return Numbers(known, {key: own for key, own in values.items() if key in known})


def _compare(claim: Claim, setting: str, one: Numbers, other: Numbers) -> Iterator[Finding]:
    words = f"{claim.one} {'is like' if claim.alike else 'is better than'} {claim.other}"
    for key, metric in CATALOGUE.items():
        if key not in one.intervals or key not in other.intervals:
            continue
        first, second = one.intervals[key], other.intervals[key]
        if claim.alike:
            verdict = AGREES if overlap(first, second) else DISAGREES
        elif not one.is_apart(key, other):
            verdict = UNSURE
        else:
            is_lower = first.value < second.value
            verdict = AGREES if is_lower == (metric.better == "lower") else DISAGREES
        text = (
            f"{claim.one} {first.value:.{metric.digits}f}, "
            f"{claim.other} {second.value:.{metric.digits}f} at {setting}"
        )
        yield Finding(key, words, setting, verdict, text)


def to_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """The `findings` of results.json."""
    return [asdict(one) for one in findings]
