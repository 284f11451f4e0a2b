"""How does one result stand for several denoisers? It holds a part for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

DENOISER = "transformer"

Value = TypeVar("Value")


class OfDenoisers:
    """A result of one denoiser, or of all denoisers of a pipeline together.

    Layers of several denoisers are named `component.layer`, those of one alone by their path.

    Attributes:
        component: the component of the pipeline that it belongs to; `transformer` for a denoiser
            without a pipeline.
        parts: the result of each denoiser, if there are several.
    """

    component: str
    parts: Mapping[str, Any]

    @property
    def denoisers(self) -> Mapping[str, Any]:
        """The result of each denoiser by its component, also where there is only one."""
        return self.parts or {self.component: self}


def qualified(values_of: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """Values of layers by denoiser as one mapping, by `component.layer`."""
    return {
        f"{component}.{layer}": value
        for component, values in values_of.items()
        for layer, value in values.items()
    }


def qualified_names(names_of: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names of layers by denoiser, as `component.layer`."""
    return tuple(f"{part}.{name}" for part, names in names_of.items() for name in names)
