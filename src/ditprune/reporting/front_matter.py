"""What stands in the front matter of another model's card? It is optional, so whatever it holds
ends nothing: what cannot be read is left out, and what can be is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_MOST_CHARACTERS = 256 * 1024
_DEEPEST = 20  # levels; cards with results in them have six
# What PyYAML raises for a date, a number or a tag that is none, and Python for deep nesting.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def read_front_matter(text: str) -> dict[str, Any]:
    """The front matter of a README.md; empty if it is no YAML object.

    A value that is not what its form or its tag says, as `date: 2024-02-30`, is read as text.
    Aliases, which can stand for more than memory holds, are not followed.
    """
    import yaml

    match = _FRONT.match(text)
    if match is None or len(match[1]) > _MOST_CHARACTERS:
        return {}
    try:
        data = yaml.load(match[1], _loader())
    except (yaml.YAMLError, *_UNREADABLE):
        return {}
    if not isinstance(data, dict):
        return {}
    return {
        key: value for key, value in data.items() if isinstance(key, str) and _dumps(key, value)
    }


def write_front_matter(data: Mapping[str, Any]) -> str:
    """It with the lines around it."""
    import yaml

    return f"---\n{yaml.safe_dump(dict(data), allow_unicode=True, sort_keys=True)}---\n"


def _dumps(key: str, value: Any) -> bool:
    """Whether it can be written into another card."""
    import yaml

    try:
        write_front_matter({key: value}).encode()
    except (yaml.YAMLError, *_UNREADABLE):
        return False
    return True


@cache
def _loader() -> Any:
    """PyYAML's safe loader without what it stumbles over."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent) or self.depth > _DEEPEST:
                raise yaml.YAMLError("an alias, or deep nesting")
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (yaml.YAMLError, *_UNREADABLE):
                if not isinstance(node, yaml.ScalarNode):
                    raise
                self.recursive_objects.pop(node, None)
                return node.value

    return Loader
