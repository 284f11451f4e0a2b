"""Holds the shapes and types that the pure functions promise, for as long as tests run."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int may stand for a float.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
PACKAGES = (
    "method.saliency",
    "method.masks",
    "method.granularity",
    "method.statistics",
    "method.reconstruction",
    "evaluation.metrics",
)


def install() -> None:
    """Check every call of these packages from their import on."""
    install_import_hook([f"ditprune.{name}" for name in PACKAGES], "shape_checks.checked")
