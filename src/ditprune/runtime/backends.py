"""Which backends run sparse Linears, and which layers can each of them take?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ditprune.errors import KernelError, RecipeError, did_you_mean
from ditprune.runtime import build, semi_structured
from ditprune.runtime.kernel_call import DTYPES
from ditprune.runtime.packed import packed_bytes, takes_pairs
from ditprune.runtime.semi_structured import SemiStructuredLinear
from ditprune.runtime.sparse_linear import SparseLinear
from ditprune.runtime.stand_in import StandIn
from ditprune.runtime.stopwatch import best_seconds

_REPEATS = 5
_FEW_TOKENS = 8  # as in few_tokens.h


class Backend(Protocol):
    """One way to run sparse layers.

    Attributes:
        device: the type of device that its layers are on.
        is_optional: whether a denoiser stays dense, with a warning, if the backend cannot run.
    """

    name: ClassVar[str]
    device: ClassVar[str]
    is_optional: ClassVar[bool]

    def check(self) -> None:
        """Raise KernelError if this machine cannot run it."""

    def obstacle(self, linear: nn.Linear) -> str:
        """Why it cannot run this layer; empty if it can."""

    def sparse(self, linear: nn.Linear, counts: Sequence[int]) -> StandIn:
        """The sparse layer for a Linear without obstacle, for these numbers of tokens."""

    def seconds(
        self, works: list[Any], device: str, cold: torch.Tensor, limit_s: float
    ) -> list[float]:
        """The best time of each work, in about `limit_s` or two runs of each."""
        return best_seconds(works, device, _REPEATS, limit_s, cold)


class OwnKernel(Backend):
    """The kernel of ditprune: any zeros, float32 and bfloat16, on a CPU."""

    name: ClassVar[str] = "cpu"
    device: ClassVar[str] = "cpu"
    is_optional: ClassVar[bool] = True

    def check(self) -> None:
        build.load_kernel()

    def obstacle(self, linear: nn.Linear) -> str:
        weight = linear.weight
        if weight.device.type != "cpu" or weight.dtype not in DTYPES:
            return f"its weight is {weight.dtype} on {weight.device}"
        if packed_bytes(weight) >= weight.nbytes:
            return "too few zeros to be smaller"
        return ""

    def sparse(self, linear: nn.Linear, counts: Sequence[int]) -> SparseLinear:
        return SparseLinear(linear, _gains_in_pairs(linear.weight, counts))


class SemiStructured(Backend):
    """torch's 2:4 kernels: float16 and bfloat16, on NVIDIA GPUs from Ampere on."""

    name: ClassVar[str] = "semi-structured"
    device: ClassVar[str] = "cuda"
    is_optional: ClassVar[bool] = False

    def check(self) -> None:
        if not torch.cuda.is_available():
            raise KernelError(
                "semi-structured: torch finds no CUDA device on this machine; leave the backend "
                "out to run sparse on the CPU"
            )

    def obstacle(self, linear: nn.Linear) -> str:
        weight = linear.weight
        reason = semi_structured.device_obstacle(weight.device)
        return reason or semi_structured.weight_obstacle(weight)

    def sparse(self, linear: nn.Linear, counts: Sequence[int]) -> SemiStructuredLinear:
        return SemiStructuredLinear(linear)


def _gains_in_pairs(weight: Tensor, counts: Sequence[int]) -> bool:
    """Whether to pack in pairs: the machine has the instruction, and the layer gets many tokens.

    For few tokens the bytes of the weight decide, and single weights take fewer. Of several
    numbers of tokens the largest takes most of the time.
    """
    is_possible = max(counts) > _FEW_TOKENS and build.machine_takes_pairs() and takes_pairs(weight)
    return is_possible and packed_bytes(weight, in_pairs=True) < weight.nbytes


BACKENDS = {backend.name: backend for backend in (OwnKernel, SemiStructured)}


def backend_of(given: str | Backend) -> Backend:
    """A backend by name, or the object itself. Raises RecipeError."""
    if not isinstance(given, str):
        return given
    if given not in BACKENDS:
        raise RecipeError(f"--backend '{given}': {did_you_mean(given, BACKENDS)}")
    return BACKENDS[given]()
