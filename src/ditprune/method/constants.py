"""Are the constants of a method numbers of their kind? Checked when it is made, before any work."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ditprune.errors import RecipeError

MOST = 1_000_000  # of things counted one by one
_LARGEST = 2**63 - 1


def check_numbers(method: Any) -> None:
    """Refuse constants that are no finite number, or no whole number where the field is an int.

    Args:
        method: a dataclass whose fields are int or float, or None where the annotation says so;
            its texts are looked at elsewhere.

    Raises RecipeError.
    """
    for constant in dataclasses.fields(method):
        value, kind = getattr(method, constant.name), str(constant.type)
        if kind == "str" or (value is None and "None" in kind):
            continue
        is_whole, is_seed = kind.startswith("int"), constant.name == "seed"
        if not _is_number(value, is_whole) or abs(value) > (_LARGEST if is_seed else MOST):
            size = "of 64 bits" if is_seed else f"of at most {MOST:,}"
            expected = f"a {'whole' if is_whole else 'finite'} number {size}"
            raise RecipeError(
                f"{method.name}: {constant.name} is {value!r:.60}, expected {expected}"
            )


def _is_number(value: Any, is_whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)
