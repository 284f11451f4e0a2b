"""`import ditprune`: quick, the same for Python and for type checkers, on every system."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import ditprune

ROOT = Path(ditprune.__file__).parent
# What Windows' Python does not have.
POSIX_ONLY = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline")
POSIX_ONLY_OF_OS = (
    "sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "getgid", "getegid", "statvfs",
    "fork", "killpg", "getpgid", "sysconf", "nice", "mkfifo", "chown", "posix_fadvise",
    "posix_fallocate", "getloadavg",
)  # fmt: skip


def fresh(code: str, *args: str) -> str:
    """The output of a fresh process that must end well."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def stub() -> dict[str, str]:
    """Each name that the stub exports by `import … as`, and its module."""
    tree = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.asname: str(node.module)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def test_importing_imports_nothing_heavy() -> None:
    code = "import sys, ditprune; print(*sys.modules)"
    assert {"torch", "numpy", "diffusers", "rich", "click"}.isdisjoint(fresh(code).split())


def test_the_table_the_stub_and_all_agree() -> None:
    modules = dict.fromkeys(ditprune._PUBLIC_MODULES, "ditprune")
    assert stub() == ditprune._MODULES | modules
    assert ditprune.__all__ == list(ditprune._MODULES)
    assert {*ditprune.__all__, *modules, "__version__"} <= set(dir(ditprune))


@pytest.mark.parametrize("name", ditprune.__all__)
def test_a_name_is_what_its_module_defines(name) -> None:
    value = getattr(ditprune, name)
    assert value.__name__ == name
    assert value.__module__ == ditprune._MODULES[name]


def test_no_module_hides_a_public_name() -> None:
    """Python sets an imported submodule as an attribute, which would replace the name."""
    modules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(ditprune.__all__) == set()


def test_attributes_come_when_they_are_asked_for() -> None:
    code = """
import sys, ditprune
assert "ditprune.runtime" not in sys.modules
assert ditprune.runtime.sparsify_ is ditprune.runtime.swap.sparsify_
import ditprune.calls, ditprune.evaluation
from ditprune import *
assert prune_ is ditprune.prune_ is ditprune.__getattr__("prune_")
assert not hasattr(ditprune, "nothing")
try:
    from ditprune import nothing
except ImportError:
    print(ditprune.__version__)
"""
    assert fresh(code).strip() == metadata.version("ditprune")


def test_every_module_can_be_imported_where_there_is_no_posix() -> None:
    code = f"""
import importlib, os, pkgutil, sys
import asyncio, psutil  # they know the systems, and take what this one has
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in {POSIX_ONLY}:
            raise ImportError(f"No module named {{name!r}}", name=name)
for name in {POSIX_ONLY}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for name in {POSIX_ONLY_OF_OS}:
    if hasattr(os, name):
        delattr(os, name)
import ditprune
names = [m.name for m in pkgutil.walk_packages(ditprune.__path__, "ditprune.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""
    num_files = sum(1 for _ in ROOT.rglob("*.py")) - 1
    assert int(fresh(code)) == num_files
