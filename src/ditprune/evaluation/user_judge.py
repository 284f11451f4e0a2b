"""How do the numbers of a user's own judge become metrics?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditprune.errors import RecipeError
from ditprune.evaluation.catalogue import CATALOGUE, Metric

# Called with images, uint8 [N, H, W, 3], and the label or prompt of each; gives N numbers by name.
Judge = Callable[[NDArray[np.uint8], list[Any]], Mapping[str, Any]]
_DIRECTIONS = ("higher", "lower")
_EXPECTED = "expected a mapping from names to one number for each image"


class UserJudge:
    """A judge whose answers are checked. Its names are those of its first answer.

    Args:
        function: the user's judge. Higher is better, but for names that its attribute `better`
            maps to `lower`.

    Raises RecipeError if it is no function, or if `better` is no such mapping.
    """

    def __init__(self, function: Judge) -> None:
        self.name = _name_of(function)
        self.metrics: dict[str, Metric] = {}
        self._function = function
        if not callable(function):
            raise RecipeError(f"judge: is a {self.name}, expected a function of images")
        self._better = getattr(function, "better", {})
        is_mapping = isinstance(self._better, Mapping)
        if not is_mapping or not set(self._better.values()) <= set(_DIRECTIONS):
            raise RecipeError(
                f"judge {self.name}: its attribute 'better' is {self._better!r}, expected a "
                "mapping from names to 'higher' or 'lower'"
            )

    def __call__(self, images: Tensor, asked: Sequence[Any]) -> dict[str, Tensor]:
        """The numbers [N] of images uint8 [N, C, H, W], C 1 or 3; NaN where one does not apply.

        Raises RecipeError for an answer of another kind than expected.
        """
        pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy().copy()
        answer = self._function(pixels, [c if isinstance(c, str) else int(c) for c in asked])
        if not isinstance(answer, Mapping) or not answer:
            raise RecipeError(f"judge {self.name}: gave {answer!r:.60}, {_EXPECTED}")
        if not self.metrics:
            self.metrics = self._metrics_of(answer)
        if set(answer) != set(self.metrics):
            raise RecipeError(
                f"judge {self.name}: gave {_listed(answer)} for one batch and "
                f"{_listed(self.metrics)} for another; expected the same names"
            )
        return {name: self._numbers(name, answer[name], len(images)) for name in self.metrics}

    def check_alike(
        self, name: str, values: Mapping[str, Sequence[float]],
        dense: Mapping[str, Sequence[float]],
    ) -> None:  # fmt: skip
        """Refuse NaN for an image of one model where there is a number for the other's.

        Models are compared on the same items. A judge that gives no number where an image is bad
        would make its model look better.

        Args:
            name: of the model.

        Raises RecipeError.
        """
        for key in self.metrics:
            for item, (mine, theirs) in enumerate(zip(values[key], dense[key], strict=True)):
                if math.isnan(mine) != math.isnan(theirs):
                    raise RecipeError(
                        f"judge {self.name}: {key} of image {item} is {mine} for {name} and "
                        f"{theirs} for dense; expected NaN for both or none, since it says that a "
                        "condition has no such number"
                    )

    def _metrics_of(self, answer: Mapping[str, Any]) -> dict[str, Metric]:
        """How to show what it gives, in its order."""
        for name in answer:
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                raise RecipeError(
                    f"judge {self.name}: gave the name {name!r:.60}, expected printable text"
                )
            if name in CATALOGUE:
                raise RecipeError(
                    f"judge {self.name}: gave the name '{name}', which is a metric of ditprune; "
                    "expected another name"
                )
        for name in set(self._better) - set(answer):
            raise RecipeError(
                f"judge {self.name}: its attribute 'better' names {name!r:.60}, expected some of "
                f"{_listed(answer)}"
            )
        return {
            name: Metric(name, self._better.get(name, "higher"), against="condition")
            for name in answer
        }

    def _numbers(self, name: str, given: Any, num_images: int) -> Tensor:
        """One number for each image, float64 [N]."""
        where = f"judge {self.name}: {name}"
        given = given.detach().cpu().double().numpy() if isinstance(given, Tensor) else given
        try:
            numbers = torch.from_numpy(np.array(given, dtype=np.float64))
        except (TypeError, ValueError):
            raise RecipeError(f"{where} is {given!r:.60}, expected {num_images} numbers") from None
        if tuple(numbers.shape) != (num_images,):
            raise RecipeError(
                f"{where} has the shape {list(numbers.shape)}, expected [{num_images}], a number "
                "for each image"
            )
        if numbers.isinf().any():
            raise RecipeError(f"{where} holds Inf, expected finite numbers (or NaN for no number)")
        return numbers


def without_nan(values: Sequence[float]) -> tuple[float, ...]:
    """The numbers of the items that have one."""
    return tuple(value for value in values if not math.isnan(value))


def _name_of(function: Any) -> str:
    """The function's name with its module; the class's name of another object."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(repr, names)))
