"""What does the command line do before a verb runs? It imports no torch, and says how to wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ditprune.cli.main import VERBS, app

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
HEAVY = {"torch", "numpy", "diffusers", "transformers", "matplotlib"}
CODE = """
import json, os, sys
sys.argv[0] = "ditprune"
from ditprune.cli.main import main
code = None
try:
    main()
except SystemExit as stop:
    code = stop.code
print(json.dumps([code, sorted(sys.modules), dict(os.environ)]), file=sys.stderr)
"""


def started(*args: str, **environment: str) -> tuple[set[str], dict[str, str]]:
    """The modules and the environment of a fresh process after a command line that ends well."""
    clean = {name: value for name, value in os.environ.items() if name not in WAITING}
    ran = subprocess.run(
        [sys.executable, "-c", CODE, *args], capture_output=True, text=True, check=True,
        env=clean | environment, timeout=900,
    )  # fmt: skip
    code, modules, variables = json.loads(ran.stderr.splitlines()[-1])
    assert code == 0, ran.stderr
    return set(modules), variables


LIGHT = [["--help"], ["--version"], [], ["report", "--help"], ["demo", "--help"]]


@pytest.mark.parametrize("args", LIGHT, ids=" ".join)
def test_help_imports_no_torch(args) -> None:
    modules, _ = started(*args)
    assert "ditprune.cli.main" in modules
    assert modules & HEAVY == set()


def test_an_unknown_verb_is_refused_without_torch() -> None:
    code = CODE.replace("main()\n", 'main(["prun"])\n')
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=900
    )
    refusal, last = ran.stderr.splitlines()
    assert refusal == "error: unknown command 'prun'; did you mean 'prune'?"
    status, modules, _ = json.loads(last)
    assert status == 2
    assert set(modules) & HEAVY == set()


def test_no_garbage_is_looked_for_at_the_end() -> None:
    last = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()))\n"
    ran = subprocess.run(
        [sys.executable, "-c", last + CODE, "--version"], capture_output=True, text=True,
        check=True, timeout=900,
    )  # fmt: skip
    assert int(ran.stdout.splitlines()[-1]) > 1000


@pytest.mark.parametrize("verb", VERBS)
def test_the_line_of_a_verb_is_its_own_help(verb) -> None:
    context = app.make_context("ditprune", [verb])
    command = app.get_command(context, verb)
    assert command is not None
    assert command.name == verb
    assert command.get_short_help_str(limit=1000) == VERBS[verb]


def test_the_help_lists_the_verbs_in_the_order_of_use(ditprune) -> None:
    code, out, _ = ditprune("--help")
    assert code == 0
    places = [out.index(f"\n  {verb} ") for verb in VERBS]
    assert places == sorted(places)
    assert " ".join(VERBS["report"].split()) in " ".join(out.split())


def test_threads_wait_briefly_before_they_sleep() -> None:
    modules, variables = started("--help")
    assert "torch" not in modules  # which reads them when it is imported
    assert [variables.get(name) for name in WAITING] == [None, "5000"]


@pytest.mark.parametrize("name", WAITING)
def test_the_users_own_way_of_waiting_stays(name) -> None:
    value = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "7"}[name]
    _, variables = started("--help", **{name: value})
    assert {other: variables.get(other) for other in WAITING} == {
        other: value if other == name else None for other in WAITING
    }


def test_in_python_the_environment_stays_as_it_is() -> None:
    code = """
import os
before = dict(os.environ)
import ditprune, ditprune.cli.main
ditprune.prune_
assert dict(os.environ) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)
