"""One recorded call of a denoiser, and the tree of values that its arguments are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ditprune.denoisers import DENOISER
from ditprune.errors import ModelError

# The default number of bins between noise and image. Calls without a position have one more bin.
NUM_BINS = 10

# What denoisers call the tensor that they take the noise out of, the commonest first.
SAMPLE_NAMES = (
    "hidden_states", "sample", "x", "latents", "latent", "noisy_latents", "noisy", "x_t", "xt",
    "x_noisy", "z", "z_t", "img", "input_ids", "decoder_input_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """`denoiser(*args, **kwargs)`, and where in denoising it was made.

    Args:
        place: how far from noise (0) to image (1); None where that is not known.
        denoiser: which component of the pipeline was called.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    place: float | None = None
    denoiser: str = DENOISER

    @classmethod
    def of(cls, batch: Any) -> Call:
        """From what users write: a Call, a dict of keyword arguments, or (args, kwargs)."""
        if isinstance(batch, Call):
            return batch
        if isinstance(batch, Mapping):
            return cls((), batch)
        if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[1], Mapping):
            args = batch[0]
            return cls(tuple(args) if isinstance(args, (tuple, list)) else (args,), batch[1])
        raise ModelError(
            f"batches: an item is {type(batch).__name__}, expected a dict of keyword arguments "
            "for the denoiser's forward, or a pair (args, kwargs)"
        )

    def map(self, change: Callable[[Any], Any]) -> Call:
        """The call with every leaf changed."""
        return replace(
            self, args=map_leaves(change, self.args), kwargs=map_leaves(change, dict(self.kwargs))
        )

    def copied(self) -> Call:
        """The call with arguments of its own, since forwards write into them; what cannot be
        copied (a lock, a file) is passed on itself.
        """
        return self.map(_copied)

    def leaves(self) -> list[Any]:
        """Every value that is not a dict, list or tuple, in a fixed order."""
        leaves: list[Any] = []
        self.map(leaves.append)
        return leaves

    def sample(self) -> Tensor:
        """The tensor being denoised: one of a known name, else the first floating one with two
        axes or more, else the first.
        """
        named = next((self.kwargs[n] for n in SAMPLE_NAMES if n in self.kwargs), None)
        tensors = list(_tensors(named)) or list(_tensors((self.args, dict(self.kwargs))))
        if not tensors:
            raise ModelError("a denoiser call without any tensor; expected its noisy sample")
        floating = (leaf for leaf in tensors if leaf.is_floating_point() and leaf.ndim > 1)
        return next(floating, tensors[0])


def _tensors(tree: Any) -> Iterator[Tensor]:
    leaves: list[Any] = []
    map_leaves(leaves.append, tree)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor))


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    try:
        return copy.deepcopy(leaf)
    except Exception:  # a class raises what it likes
        return leaf


def map_leaves(change: Callable[[Any], Any], tree: Any) -> Any:
    """Rebuild nested dicts, lists and tuples with every other value changed."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(change, value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map_leaves(change, value) for value in tree)
    return change(tree)


def bin_of(progress_t: float | None, num_bins: int = NUM_BINS) -> int:
    """The bin of a position between noise (0) and image (1); one more bin for no position."""
    return num_bins if progress_t is None else min(int(progress_t * num_bins), num_bins - 1)
