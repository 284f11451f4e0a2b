"""What does a run of `shrink` do? Every choice in one checked value, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ditprune.denoiser.placement import parse_size
from ditprune.errors import RecipeError, did_you_mean
from ditprune.method.choices import as_error, as_globs, check_name, flag
from ditprune.method.numbers import whole
from ditprune.shrinking.modulation import AUTO, NONE, checked_modulation
from ditprune.shrinking.units import HEADS, NEURONS

DEFAULT_RATIO = 0.3
PARTS = (HEADS, NEURONS)
PRICES = ("macs", "parameters")
PRESETS = ("fast", "best")
AMOUNTS = ("ratio", "max_error", "fit")
_LARGEST_RATIO = 0.95
_MOST_SHAPES = 1000


@dataclass(frozen=True)
class ShrinkRecipe:
    """What a run of `shrink` does; checked when it is made.

    Args:
        ratio: share of the price of the layers that `parts` names, inside the blocks, that goes;
            0.3 by default, 0 removes no units.
        max_error: in place of `ratio`: the largest expected relative error of the predicted noise.
        fit: in place of `ratio`: the memory that the denoiser's weights may take in the dtype that
            they have, in bytes or as `"12GB"`.
        parts: what goes: `heads` of attentions (queries, keys, values, output), `neurons` of MLPs.
        modulation: share of the weights of modulation layers that goes by low rank; `auto` (the
            default) takes each layer's smallest rank whose error is at most 1e-5 of its output;
            `none` leaves them. It is no part of `ratio`.
        price: what `ratio` is a share of: `macs`, the multiplications of the first call (default),
            or `parameters`.
        multiple: neurons stay in multiples of this; `auto` takes 128 from a width of 4,096 up, 64
            from 2,048, 32 from 1,024, else 16.
        max_shapes: at most so many different shapes of blocks by their heads and neurons, 8 by
            default, as compilers give up beyond it; `none` sets no limit. Ranks that `auto` gives
            are not limited; a share gives all layers of a size the same.
        preset: `fast` (default) takes no training; `best` trains each block for a moment.
        include, exclude: globs over the names of attentions and MLPs.
        blocks: globs over module paths that say where the transformer blocks are.

    Raises RecipeError for impossible values and for choices that exclude each other.
    """

    ratio: float | None = None
    max_error: float | None = None
    fit: int | str | None = None
    parts: tuple[str, ...] = PARTS
    modulation: float | str = AUTO
    price: str = PRICES[0]
    multiple: int | str = AUTO
    max_shapes: int | str = 8
    preset: str = PRESETS[0]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("price", PRICES, self.price)
        check_name("preset", PRESETS, self.preset)
        changes: dict[str, Any] = {
            "parts": _parts(self.parts),
            "modulation": checked_modulation(self.modulation),
            **{word: as_globs(word, getattr(self, word)) for word in ("include", "exclude")},
            "blocks": as_globs("blocks", self.blocks),
            **self._amount(),
        }
        if self.multiple != AUTO:
            changes["multiple"] = whole("multiple", self.multiple)
        if self.max_shapes != NONE:
            changes["max_shapes"] = whole("max_shapes", self.max_shapes, _MOST_SHAPES)
        for word, value in changes.items():
            object.__setattr__(self, word, value)

    def _amount(self) -> dict[str, float | None]:
        """How much goes, in the one way that was asked for."""
        given = {w: getattr(self, w) for w in AMOUNTS if getattr(self, w) is not None}
        if len(given) > 1:
            told = " and ".join(f"{flag(word)} {value}" for word, value in given.items())
            raise RecipeError(f"{told} exclude each other: each says how much goes; pass one")
        if self.max_error is not None:
            return {"max_error": as_error(self.max_error)}
        if self.fit is not None:
            return {"fit": parse_size(self.fit, "--fit")}
        ratio = DEFAULT_RATIO if self.ratio is None else self.ratio
        is_number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not (is_number and 0 <= ratio <= _LARGEST_RATIO):
            raise RecipeError(
                f"--ratio {ratio!r:.60}: expected the share that goes, from 0 to {_LARGEST_RATIO}"
            )
        return {"ratio": float(ratio)}

    @classmethod
    def of(cls, recipe: ShrinkRecipe | None = None, **words: Any) -> ShrinkRecipe:
        """A recipe, or one from words; None leaves a word out.

        Raises RecipeError for both, and for a word that is unknown.
        """
        known = [part.name for part in fields(cls)]
        given = {word: value for word, value in words.items() if value is not None}
        for word in given:
            if word not in known:
                raise RecipeError(f"no word of a recipe is '{word}'; {did_you_mean(word, known)}")
        if recipe is None:
            return cls(**given)
        if not isinstance(recipe, ShrinkRecipe):
            raise RecipeError(f"recipe: {type(recipe).__name__} given, expected a ShrinkRecipe")
        if given:
            raise RecipeError(f"recipe and '{min(given)}' exclude each other; pass one of them")
        return recipe

    def to_json(self) -> dict[str, Any]:
        """Plain values under the words that `of` takes."""
        values: Mapping[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        return {word: list(v) if isinstance(v, tuple) else v for word, v in values.items()}


def _parts(given: Any) -> tuple[str, ...]:
    parts = (given,) if isinstance(given, str) else tuple(given)
    for part in parts:
        check_name("parts", PARTS, part)
    return tuple(part for part in PARTS if part in parts)
