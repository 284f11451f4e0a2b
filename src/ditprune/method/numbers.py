"""Is what was given for an option a number of its kind, and of a size that can be?

What is out of all proportion is refused, as it would keep a machine busy without a word.
"""

from __future__ import annotations

import operator
from typing import Any

from ditprune.errors import RecipeError
from ditprune.method.choices import flag
from ditprune.method.constants import MOST

MOST_PIXELS = 2**16  # along a side
MOST_AT_ONCE = 10_000  # items of a batch
MOST_BINS = 1_000
_LARGEST = 2**63 - 1


def whole(word: str, value: Any, most: int = MOST, least: int = 1) -> int:
    """It as an int, if it is a whole number from `least` to `most`. Raises RecipeError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise RecipeError(f"{flag(word)} {value!r:.60}: expected a whole number")
    if not least <= number <= most:
        bound = f"at least {least:,}" if number < least else f"at most {most:,}"
        shown = number if abs(number) <= _LARGEST else "of many digits"
        raise RecipeError(f"{flag(word)} {shown}: expected {bound}")
    return number


def integer(word: str, value: Any) -> int:
    """It as an int, if it is a whole number of 64 bits. Raises RecipeError."""
    return whole(word, value, _LARGEST, -_LARGEST)


def finite(word: str, value: Any) -> float:
    """It, if it is a finite number of no great size. Raises RecipeError."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= MOST:
        raise RecipeError(f"{flag(word)} {value!s:.60}: expected a number of at most {MOST:,}")
    return value
