"""Include and exclude: globs over target names that must match something."""

from __future__ import annotations

import pytest

from ditprune.errors import TargetError
from ditprune.targets.discover import discover, select


@pytest.fixture(scope="module")
def targets(tiny_dit):
    return discover(tiny_dit())


def leaves(chosen) -> set[str]:
    return {name.split(".", 2)[2] for name in chosen}


def test_without_patterns_everything_is_chosen(targets) -> None:
    assert select(targets) == targets


def test_include_takes_what_any_pattern_matches(targets) -> None:
    chosen = select(targets, include=["*.to_q", "*.to_k"])
    assert leaves(chosen) == {"attn1.to_q", "attn1.to_k"}
    assert len(chosen) == 6


def test_exclude_drops_what_any_pattern_matches(targets) -> None:
    chosen = select(targets, exclude=["*norm1*", "*.ff.*"])
    assert leaves(chosen) == {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"}


def test_exclude_is_taken_from_include(targets) -> None:
    chosen = select(targets, include=["*.attn1.*"], exclude=["transformer_blocks.[01].*"])
    assert set(chosen) == {n for n in targets if n.startswith("transformer_blocks.2.attn1")}


def test_order_and_records_are_those_of_the_model(targets) -> None:
    chosen = select(targets, include=["*.ff.*", "*.to_q"])
    assert list(chosen) == [name for name in targets if name in chosen]
    assert all(chosen[name] is targets[name] for name in chosen)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused_with_a_suggestion(targets, option: str) -> None:
    with pytest.raises(
        TargetError,
        match=rf"{option}='\*.attn.to_q' matches none of 21 targets; did you mean '\*.attn1",
    ):
        select(targets, **{option: ["*.to_q", "*.attn.to_q"]})


def test_case_counts(targets) -> None:
    with pytest.raises(TargetError, match="matches none"):
        select(targets, include=["*.TO_Q"])


def test_leaving_nothing_is_refused(targets) -> None:
    with pytest.raises(TargetError, match="leave none of 21 targets"):
        select(targets, include=["*.to_q"], exclude=["*.attn1.*"])
