"""When does diffusers learn of compact and shrunk folders? When it and ditprune are imported.

diffusers keeps its quantizers in two tables of a module, and offers no way to register another.
Importing that module here would make `import ditprune` slow. So the quantizer, and torch with it,
is imported at once if the module is imported already; else an import hook waits for the module, and
is removed after its import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TABLES = "diffusers.quantizers.auto"


def register() -> None:
    """Make diffusers load our folders, now or as soon as it is imported. Imports nothing."""
    if _TABLES in sys.modules:
        _add_to(sys.modules[_TABLES])
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _add_to(tables: ModuleType) -> None:
    from ditprune.runtime import diffusers_loader, shrunk_loader

    diffusers_loader.add_to(tables)
    shrunk_loader.add_shrunk(tables)


class _Waiting(MetaPathFinder):
    """Finds the module with the tables, and adds to it after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLES:
            return None
        others = (f for f in sys.meta_path if not isinstance(f, _Waiting))
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            _add_after_import(spec.loader)
        return spec


def _add_after_import(loader: Any) -> None:
    """Let a loader add to the tables once, when it has run their module."""

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        loader.exec_module(module)
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _Waiting)]
        _add_to(module)

    loader.exec_module = exec_module
