"""Which 2:4 layers run on NVIDIA GPUs, through `torch.sparse.to_sparse_semi_structured`, and how?

A layer needs a weight in float16 or bfloat16 on a CUDA device of compute capability 8.0 or more,
C_out a multiple of 32 and C_in of 64 (the stricter of torch's two kernels), and at most 2 nonzeros
in each 4 consecutive inputs. Patterns such as 4:8 and unstructured zeros have no GPU kernel.

Limits: inference only. The weight is read back by a product with the identity, so a negative zero
comes back as zero. Another device or dtype, and pickling, are refused until `desparsify_`. Whether
a layer is faster depends on the machine, so `sparsify_` times each shape.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ditprune.errors import KernelError
from ditprune.runtime.stand_in import StandIn

DTYPES = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64
_CAPABILITY = (8, 0)


def is_two_of_four(weight: Tensor) -> bool:
    """Whether each 4 consecutive inputs hold at most 2 nonzeros; C_in a multiple of 4."""
    return weight.shape[1] % 4 == 0 and bool((weight.reshape(-1, 4).count_nonzero(1) <= 2).all())


def device_obstacle(device: torch.device) -> str:
    """Why no layer on a device can run 2:4; empty if it can."""
    if device.type != "cuda":
        return f"its weight is on {device}, and 2:4 runs on CUDA devices only"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{'.'.join(map(str, capability))}, and 2:4 needs {'.'.join(map(str, _CAPABILITY))}"
        )
    return ""


def weight_obstacle(weight: Tensor) -> str:
    """Why a weight [C_out, C_in] cannot run 2:4 wherever it lies; empty if it can."""
    num_rows, num_columns = weight.shape
    if weight.dtype not in DTYPES:
        return f"its weight is {weight.dtype}, and 2:4 needs float16 or bfloat16"
    if num_rows % ROWS or num_columns % COLUMNS:
        return (
            f"its weight is [{num_rows}, {num_columns}], and 2:4 needs multiples of "
            f"[{ROWS}, {COLUMNS}]"
        )
    if not is_two_of_four(weight):
        return "its zeros are not 2:4, and no other pattern has a GPU kernel"
    if not weight.isfinite().all():
        return "its weight holds NaN or Inf"
    return ""


class SemiStructuredLinear(StandIn):
    """Replaces a Linear whose weight is 2:4.

    Args:
        linear: its weight has no `weight_obstacle`.
    """

    @staticmethod
    def _compress(weight: Tensor) -> Tensor:
        """torch's 2:4 tensor of a weight [C_out, C_in], without torch's prototype warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.sparse.to_sparse_semi_structured(weight.contiguous())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        """[..., in_features] → [..., out_features]. Raises KernelError."""
        if torch.is_autocast_enabled("cuda") and input.is_cuda:
            input = input.to(torch.get_autocast_dtype("cuda"))  # noqa: A001
        if input.dtype != self.compressed.dtype or input.device != self.compressed.device:
            raise KernelError(
                f"2:4 layer: inputs are {input.dtype} on {input.device}, expected "
                f"{self.compressed.dtype} on {self.compressed.device} as its weight is"
            )
        if torch.is_grad_enabled() and input.requires_grad:
            raise KernelError(
                "2:4 layer: runs without gradients only; use torch.no_grad(), or desparsify_ first"
            )
        # torch's product takes contiguous rows, and at least one.
        flat = input.reshape(-1, self.in_features).contiguous()
        with torch.no_grad():
            out = F.linear(flat, self.compressed, self.bias) if len(flat) else flat.new_empty(0)
        return out.reshape(*input.shape[:-1], self.out_features)

    def _dense(self) -> Tensor:
        return self.compressed.to_dense()

    @property
    def size_bytes(self) -> int:
        parts = (getattr(self.compressed, name, None) for name in ("packed", "meta"))
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def _like(self) -> Tensor:
        return torch.empty(0, dtype=self.compressed.dtype, device=self.compressed.device)

    def _hold(self, weight: Tensor) -> None:
        # Neither parameter nor buffer: code that moves those cannot handle torch's 2:4 tensors.
        self.compressed = self._compress(weight)

    def _obstacle(self, weight: Tensor) -> str:
        return weight_obstacle(weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, 2:4"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SemiStructuredLinear:
        """Called by `.to()` and similar; refused if the weight would have to change."""
        like = self._like
        moved = fn(like)
        if (moved.dtype, moved.device) != (like.dtype, like.device):
            raise KernelError(
                f"2:4 layer: is {like.dtype} on {like.device} and cannot become {moved.dtype} on "
                f"{moved.device}; call desparsify_ first, and sparsify_ again after"
            )
        super()._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SemiStructuredLinear:
        linear = self.to_linear()
        linear.register_parameter("bias", copy.deepcopy(self.bias, memo))
        memo[id(self)] = other = type(self)(linear)
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise KernelError(
            "2:4 layer: cannot be pickled; save its state_dict, or call desparsify_ first"
        )
