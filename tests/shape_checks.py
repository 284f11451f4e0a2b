"""The type checker that holds the jaxtyping shapes of the pure rows while tests run."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
PACKAGES = [
    f"ditprune.{name}" for name in ("saliency", "masks", "granularity", "statistics", "metrics")
]
