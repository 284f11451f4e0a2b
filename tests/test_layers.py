"""Imports go downward only, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ditprune

# A package may import those on rows above its own in this list; those on one row stay apart.
ROWS: list[set[str]] = [
    {"errors", "denoisers"},
    {"progress", "calls", "bundled", "imports"},
    {"writing", "method", "targets"},
    {"checkpoints"},
    {"denoiser"},
    {"calibration"},
    {"reporting", "runtime"},
    {"evaluation", "pruning", "diffusers_hook"},
    {"shrinking"},
    {"reproduce", "api"},
    {"cli"},
    {"__main__"},
]
# Pure tensor maths: torch only, and no modules.
PURE = {"errors", "calls", "method"}
# Libraries, and the only packages that may import them at all.
KEPT_TO = {
    "safetensors": {"writing", "checkpoints", "bundled"},
    "jinja2": {"reporting"},
    "matplotlib": {"reporting", "reproduce"},
    "PIL": {"evaluation", "reporting"},
    "rich": {"cli", "reporting"},
}
# Libraries imported inside functions only.
LATE = {"diffusers", "huggingface_hub", "jinja2", "matplotlib"}

ROOT = Path(ditprune.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(node: ast.AST, in_function: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(dotted module, line, inside a function) of each import that runs."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.orelse:
            yield from imports(child, in_function)
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno, in_function) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        # `from ditprune import masks` and `from torch import nn` may import the module named.
        yield from (
            (f"{node.module}.{alias.name}", node.lineno, in_function) for alias in node.names
        )
    in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for child in ast.iter_child_nodes(node):
        yield from imports(child, in_function)


PACKAGES = {name for row in ROWS for name in row}


def row_of(package: str) -> int:
    return next(i for i, row in enumerate(ROWS) if package in row)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    package = package_of(path)
    assert package in PACKAGES, f"{package}: give it a row"
    for module, line, in_function in imports(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(ROOT)}:{line}: imports {module}"
        library, *inner = module.split(".")
        if library == "ditprune":
            # The package itself stands above all but the last row.
            row = row_of(inner[0]) if inner and inner[0] in PACKAGES else len(ROWS) - 2
            below = [package] == inner[:1] or row < row_of(package)
            assert below, f"{where}, which is not below {package}"
        assert package in KEPT_TO.get(library, {package}), f"{where}; kept to {KEPT_TO[library]}"
        assert in_function or library not in LATE, f"{where}; do it inside a function"
        if package in PURE:
            assert not module.startswith(("torch.nn", "diffusers")), where


def test_the_rows_name_each_package_once() -> None:
    names = [name for row in ROWS for name in row]
    assert len(names) == len(set(names))
    assert PURE | {package_of(path) for path in FILES} <= PACKAGES


def test_the_reader_of_imports_sees_what_runs_and_nothing_else() -> None:
    source = """
if TYPE_CHECKING:
    import hidden
else:
    import fallback
from ditprune.method import masks
import torch.nn as nn
def f():
    from diffusers import DiTPipeline
"""
    assert list(imports(ast.parse(source))) == [
        ("fallback", 5, False),
        ("ditprune.method.masks", 6, False),
        ("torch.nn", 7, False),
        ("diffusers.DiTPipeline", 9, True),
    ]
