"""A denoiser whose layers run sparse is refused, with the way back."""

from __future__ import annotations

import pytest

import ditprune
from ditprune.errors import ModelError
from ditprune.runtime import SparseLinear, desparsify_
from ditprune.targets.discover import discover

NAME = "transformer_blocks.1.attn1.to_q"


def test_sparse_layers_are_refused_until_they_are_swapped_back(tiny_dit) -> None:
    denoiser = tiny_dit()
    targets = discover(denoiser)
    denoiser.set_submodule(NAME, SparseLinear(denoiser.get_submodule(NAME)))
    with pytest.raises(ModelError, match=rf"1 layers run sparse \(first {NAME}\).*desparsify_"):
        discover(denoiser)
    desparsify_(denoiser)
    assert discover(denoiser) == targets


def test_so_does_everything_that_asks_for_targets(tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    calls = batches(denoiser)
    denoiser.set_submodule(NAME, SparseLinear(denoiser.get_submodule(NAME)))
    for work in (
        lambda: ditprune.prune_(denoiser, saliency="magnitude"),
        lambda: ditprune.calibrate(denoiser, calls),
        lambda: ditprune.inspect(denoiser),
    ):
        with pytest.raises(ModelError, match="desparsify_"):
            work()


def test_a_denoiser_all_of_whose_layers_run_sparse_is_refused_for_that(tiny_dit) -> None:
    denoiser = tiny_dit()
    for name in discover(denoiser):
        denoiser.set_submodule(name, SparseLinear(denoiser.get_submodule(name)))
    with pytest.raises(ModelError, match="run sparse"):
        discover(denoiser)


def test_the_classes_are_those_that_are_swapped_in() -> None:
    """They are known by name here, below the runtime."""
    from ditprune import runtime
    from ditprune.runtime import semi_structured
    from ditprune.targets.exceptions import SPARSE_CLASSES

    own = {runtime.SparseLinear.__name__, semi_structured.SemiStructuredLinear.__name__}
    assert set(SPARSE_CLASSES) == own
