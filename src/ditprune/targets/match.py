"""Which of the discovered targets a run takes: include and exclude patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ditprune.errors import TargetError, did_you_mean
from ditprune.targets.discover import Target


def select(
    targets: dict[str, Target], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, Target]:
    """The targets that match any `include` glob (all, if none is given) and no `exclude` glob.

    Raises TargetError where a pattern matches nothing, or nothing is left.
    """
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in targets):
                raise TargetError(
                    f"--{option} '{pattern}' matches none of {len(targets)} targets; "
                    f"{did_you_mean(pattern, _leaf_patterns(targets))}"
                )
    chosen = {
        name: target
        for name, target in targets.items()
        if (not include or any(fnmatchcase(name, p) for p in include))
        and not any(fnmatchcase(name, p) for p in exclude)
    }
    if not chosen:
        raise TargetError(
            f"include and exclude leave none of {len(targets)} targets; loosen the patterns"
        )
    return chosen


def _leaf_patterns(targets: dict[str, Target]) -> set[str]:
    """The shortest patterns worth proposing: each layer by its path below its block."""
    return {"*." + target.name.removeprefix(f"{target.block}.") for target in targets.values()}
