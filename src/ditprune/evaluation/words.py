"""Which words does `evaluate` take, and what do they say?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError, did_you_mean
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.writing.paths import path_of

_OF_PROTOCOL = tuple(field.name for field in fields(Protocol))
# A field of Measures by its word.
_OF_MEASURES = {"metrics": "names"} | {
    field.name: field.name for field in fields(Measures) if field.name != "names"
}
_OF_PLACEMENT = ("device", "dtype", "max_memory")
WORDS = (*_OF_PROTOCOL, *_OF_MEASURES, *_OF_PLACEMENT)
_LISTS = ("labels", "prompts", "metrics")
_PATHS = ("reference", "images")


def read_words(words: Mapping[str, Any]) -> tuple[Protocol, Measures, dict[str, Any]]:
    """The protocol, the measures, and the words that say where models run.

    Raises RecipeError for an unknown word or a value that cannot be.
    """
    for word in words:
        if word not in WORDS:
            raise RecipeError(f"evaluate: takes no {word}; {did_you_mean(word, WORDS)}")
    values = {word: _value(word, value) for word, value in words.items()}
    protocol = Protocol(**{word: values[word] for word in _OF_PROTOCOL if word in values})
    measures = {field: values[word] for word, field in _OF_MEASURES.items() if word in values}
    places = {word: values[word] for word in _OF_PLACEMENT if values.get(word) is not None}
    return protocol, Measures(**measures), places


def _value(word: str, value: Any) -> Any:
    """Sequences as tuples, so that a protocol compares and prints; places as paths."""
    if value is None:
        return None
    if word in _LISTS:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise RecipeError(f"evaluate: {word} is {value!r:.60}, expected a list")
        return tuple(value)
    if word in ("feature_extractor", "clip"):
        return str(path_of(value, RecipeError))
    return path_of(value, RecipeError) if word in _PATHS else value


def placement_of(places: Mapping[str, Any], default: Placement) -> Placement:
    """Where models of folders run. Raises RecipeError for a word that says no place.

    Args:
        places: `device`, `dtype` and `max_memory`, of PyTorch or as on the command line.
        default: for words that are not there.
    """
    checked = Placement.of(
        places.get("device", default.device), places.get("dtype"), places.get("max_memory")
    )
    return checked if "dtype" in places else replace(checked, dtype=default.dtype)
