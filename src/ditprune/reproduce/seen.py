"""What the studies that look come to, in words: by rule from their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A peak "near 1e-1" lies nearer to it than to 1e-2 on a logarithmic scale.
_NEAR = (10**-1.5, 10**-0.5)


def conclusions_of_statistics(found: Mapping[str, Any]) -> list[str]:
    """Where the histogram of |W| has its peak, and where squaring puts layers nearer together."""
    edges, said = found["histograms"]["edges"], []
    for role, counts in found["histograms"]["counts"].items():
        place = max(range(len(counts)), key=counts.__getitem__)
        low, high = edges[place], edges[place + 1]
        peak = (low * high) ** 0.5
        verdict = "agrees" if _NEAR[0] <= peak < _NEAR[1] else "disagrees"
        said.append(
            f"The histogram of |W| in {role} layers has its peak at {peak:.2g} "
            f"({low:.2g} to {high:.2g}): {verdict} with a peak near 1e-1."
        )
    for key, what in (("ratio", "|W|/|X|"), ("squared_ratio", "|W|²/|X|")):
        own = [row[key] for row in found["rows"] if row[key]]
        if own:
            said.append(
                f"Mean {what} of a layer lies between {min(own):.3g} and {max(own):.3g} "
                f"({max(own) / min(own):.3g} times as large)."
            )
    return said


def conclusions_of_importance(found: Mapping[str, Any]) -> list[str]:
    """Whether G_out of modulation lies above that of every other layer, as in the paper."""
    groups: dict[bool, list[float]] = {True: [], False: []}
    for row in found["rows"]:
        groups[row["role"] == "modulation"].append(row["g_out"])
    modulation, others = groups[True], groups[False]
    if not modulation or not others:
        return [
            "This model has no layers of adaLN modulation beside others; the paper's contrast "
            "cannot be looked for."
        ]
    spans = (
        f"G_out of modulation layers is {min(modulation):.3g} to {max(modulation):.3g}, of all "
        f"others {min(others):.3g} to {max(others):.3g}"
    )
    above = sum(one > max(others) for one in modulation)
    if above == len(modulation):
        return [f"{spans}: agrees with the paper, every modulation layer lies above all others."]
    verdict = "disagrees" if above == 0 else "agrees in part"
    return [
        f"{spans}: {verdict}, {above} of {len(modulation)} modulation layers lie above all others."
    ]
