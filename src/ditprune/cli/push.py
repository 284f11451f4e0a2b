"""ditprune push: upload a pruned folder, with its card, to the hub."""

from __future__ import annotations

import click

from ditprune.checkpoints.hub import check_repo, push_folder
from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.cli.groups import GroupedCommand
from ditprune.errors import ModelError
from ditprune.pruning.verify import false_claims


@click.command(cls=GroupedCommand)
@click.argument("out")
@click.argument("repo")
@click.option("--private", is_flag=True, help="make REPO private, if it is new")
def push(out: str, repo: str, private: bool) -> None:
    """Upload the pruned folder OUT to the hub as REPO (USER/NAME), after verifying its claims.

    REPO is created if it does not exist. A REPO that holds anything but a model that ditprune
    pushed is refused. Log in first, with `hf auth login`.
    """
    model = locate(out)
    check_repo(repo)
    false_claim = next(false_claims(model), None)
    if false_claim is not None:
        raise ModelError(f"{out}: not pushed, because one of its claims is false: {false_claim}")
    console.show([f"pushed: {push_folder(model.root, repo, private)}"])
