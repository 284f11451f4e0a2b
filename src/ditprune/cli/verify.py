"""ditprune verify: does a pruned folder keep what its manifest says?"""

from __future__ import annotations

import click

from ditprune.api.folders import verify as false_claims
from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.cli.groups import GroupedCommand
from ditprune.reporting.told import facts_of_denoisers


@click.command(cls=GroupedCommand)
@click.argument("out")
def verify(out: str) -> int:
    """Read the folder OUT back from disk; exit 1 when any claim of its manifest is false."""
    count = 0
    for claim in false_claims(out):
        console.show([f"false: {claim}"])
        count += 1
    if count:
        console.show([f"{out}: {count} false claims"])
        return 1
    console.show(facts_of_denoisers(locate(out).denoisers))
    console.show([f"{out}: every claim holds"])
    return 0
