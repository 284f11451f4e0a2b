"""The prompts that ship with the package: one a line, fit to be read as they are."""

from __future__ import annotations

from ditprune import bundled

TEXT = bundled.PROMPTS.read_bytes()
LINES = TEXT.decode("utf-8").splitlines()


def test_they_are_128_different_ones() -> None:
    assert len(LINES) == 128
    assert len({line.casefold() for line in LINES}) == 128


def test_each_line_is_a_prompt_and_nothing_else() -> None:
    assert TEXT.decode("utf-8") == "".join(f"{line}\n" for line in LINES)
    for line in LINES:
        assert line.isprintable(), line
        assert line == " ".join(line.split())
        assert line[0].isupper(), line


def test_some_are_short_and_some_are_long() -> None:
    """Both ends of what a text encoder is given."""
    num_words = sorted(len(line.split()) for line in LINES)
    assert num_words[0] >= 5
    assert num_words[9] <= 8
    assert num_words[-8] >= 40
    assert num_words[-1] <= 60
