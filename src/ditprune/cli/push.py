"""ditprune push: a pruned folder, with its card, up to the hub."""

from __future__ import annotations

import click

from ditprune.checkpoints import hub
from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.errors import ModelError
from ditprune.pruning.verify import verify


@click.command()
@click.argument("out")
@click.argument("repo")
@click.option("--private", is_flag=True, help="where REPO is new, make it private")
def push(out: str, repo: str, private: bool) -> None:
    """Put the pruned folder OUT on the hub as REPO (USER/NAME), once every claim of it holds.

    REPO is made where it is not there; one that holds anything but a model that ditprune pushed
    is refused. Log in first, with `hf auth login`.
    """
    model = locate(out)
    hub.check(repo)
    false = next(verify(model), None)
    if false is not None:
        raise ModelError(f"{out}: not pushed, since a claim of it is false: {false}")
    console.out.print(f"pushed: {hub.push(model.root, repo, private)}", markup=False)
