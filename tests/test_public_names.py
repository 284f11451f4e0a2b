"""What is public is listed in one file, and no two public names are the same.

`public_names.txt` holds the names and signatures of `ditprune` and `ditprune.runtime`. After a
change that is meant: `python tests/test_public_names.py` writes it again, and the diff shows it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ditprune

LISTED = Path(__file__).with_name("public_names.txt")
PUBLIC = ("ditprune", "ditprune.runtime")
ROOT = Path(ditprune.__file__).parent
ROOMS = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
# A command is a verb of the command line, which is also the name of what it runs.
COMMANDS = "cli"


def surface() -> list[str]:
    """A line for each public name, with its signature, its fields and its methods."""
    lines = []
    for package in PUBLIC:
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            lines += described(f"{package}.{name}", getattr(module, name))
    return lines


def described(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value) and not issubclass(value, BaseException):
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        yield f"{name}({', '.join(field.name for field in fields)})"
        ours = (base for base in reversed(value.__mro__) if base.__module__.startswith("ditprune"))
        members = {key: member for base in ours for key, member in vars(base).items()}
        for method, member in sorted(members.items()):
            if not method.startswith("_") and callable(getattr(value, method)):
                yield f"{name}.{method}{signature_of(getattr(member, '__func__', member))}"
            elif isinstance(member, property) and not method.startswith("_"):
                yield f"{name}.{method}"
    else:
        yield name + (signature_of(value) if inspect.isfunction(value) else "")


def signature_of(function: Any) -> str:
    """The parameters and what is returned, as they are written; values without addresses."""
    text = str(inspect.signature(inspect.unwrap(function))).replace("'", "")
    return re.sub(r"<function (\w+) at \w+>", r"\1", text)


def test_the_public_surface_is_the_one_that_is_listed() -> None:
    assert surface() == LISTED.read_text(encoding="utf-8").splitlines()


def defined() -> dict[str, list[str]]:
    """The modules that define each public function or class, commands aside."""
    modules = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        if place.parts[0] != COMMANDS:
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_":
                    modules[node.name].append(place.as_posix())
    return modules


def test_no_two_public_names_are_the_same() -> None:
    assert {name: places for name, places in defined().items() if len(places) > 1} == {}


def test_no_public_name_is_that_of_a_room() -> None:
    assert len(ROOMS) == 15
    assert ROOMS & (defined().keys() | set(ditprune.__all__)) == set()


# Words that say nothing of what they hold.
EMPTY = {"one", "own", "found", "kept"}


def fields_in(tree: ast.AST) -> set[int]:
    """The names of fields, by id: `outcome.kept` reads well."""
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {id(x.target) for node in classes for x in node.body if isinstance(x, ast.AnnAssign)}


def test_locals_say_what_they_hold() -> None:
    named = set()
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        fields, place = fields_in(tree), path.relative_to(ROOT).as_posix()
        for node in ast.walk(tree):
            if isinstance(node, (ast.Name, ast.arg)) and id(node) not in fields:
                named.add((place, node.id if isinstance(node, ast.Name) else node.arg))
    assert {(place, name) for place, name in named if name in EMPTY} == set()


if __name__ == "__main__":
    LISTED.write_text("\n".join(surface()) + "\n", encoding="utf-8")
