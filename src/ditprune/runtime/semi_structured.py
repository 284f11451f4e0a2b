"""2:4 layers on NVIDIA GPUs, through `torch.sparse.to_sparse_semi_structured`.

What it takes: a weight in float16 or bfloat16 on a CUDA device of compute capability 8.0 or more,
C_out a multiple of 32 and C_in of 64 (the stricter of torch's two kernels), at most 2 nonzeros in
each 4 consecutive inputs. Patterns such as 4:8, and zeros at any place, have no GPU kernel.

Its limits: inference only; the weight is read back by a product with the identity, so a negative
zero comes back as zero; another device or dtype, and pickling, are refused until `desparsify_`.
Whether it is faster is for the clock to say on the machine at hand: `sparsify_` times each shape.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ditprune.errors import KernelError

DTYPES = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64
CAPABILITY = (8, 0)

Compress = Callable[[Tensor], Tensor]


def compress(weight: Tensor) -> Tensor:
    """torch's 2:4 tensor of a weight [C_out, C_in], silent about being a prototype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse.to_sparse_semi_structured(weight.contiguous())


def is_two_of_four(weight: Tensor) -> bool:
    """Whether each 4 consecutive inputs hold at most 2 nonzeros; C_in a multiple of 4."""
    if weight.shape[1] % 4:
        return False
    return bool((weight.reshape(-1, 4).count_nonzero(1) <= 2).all())


def device_obstacle(device: torch.device) -> str:
    """Why no layer on a device can run 2:4; empty if it can."""
    if device.type != "cuda":
        return f"its weight is on {device}, and 2:4 runs on CUDA devices only"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{'.'.join(map(str, capability))}, and 2:4 needs {'.'.join(map(str, CAPABILITY))}"
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


class SemiStructuredLinear(nn.Module):
    """In place of a Linear whose weight is 2:4, for inference.

    Its state dict is the Linear's: `weight` is made dense when saved and compressed when loaded.
    It is no `nn.Linear`, so that what writes into `linear.weight` refuses it.

    Args:
        linear: with a weight that has no obstacle.
        compress: from a dense weight to torch's tensor.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, compress: Compress = compress) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_requires_grad = linear.weight.requires_grad
        self.register_parameter("bias", linear.bias)
        self._compress = compress
        self._hold(linear.weight)
        self.train(linear.training)

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
        with torch.no_grad():
            return F.linear(input, self.compressed, self.bias)

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew at each access; writing into it changes nothing."""
        return self.compressed.to_dense()

    @property
    def size_bytes(self) -> int:
        """What the compressed weight takes: values, and where they stand."""
        parts = (getattr(self.compressed, name, None) for name in ("packed", "meta"))
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def to_linear(self) -> nn.Linear:
        """The Linear it stands for, with the same bias object."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight, requires_grad=self.weight_requires_grad)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, 2:4"
        )

    def _hold(self, weight: Tensor) -> None:
        # Neither parameter nor buffer: what moves those knows nothing of torch's 2:4 tensors.
        self.compressed = self._compress(weight.detach())

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SemiStructuredLinear:
        """What `.to()` and its like do; refused where the weight would have to change."""
        like = torch.empty(0, dtype=self.compressed.dtype, device=self.compressed.device)
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
        memo[id(self)] = other = SemiStructuredLinear(linear, self._compress)
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise KernelError(
            "2:4 layer: cannot be pickled; save its state_dict, or call desparsify_ first"
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any],
        strict: bool, missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        key = f"{prefix}weight"
        weight = state_dict.get(key)
        if weight is None:
            missing_keys.append(key)
        elif tuple(weight.shape) != (self.out_features, self.in_features):
            error_msgs.append(
                f"size mismatch for {key}: got {list(weight.shape)}, expected "
                f"{[self.out_features, self.in_features]}"
            )
        else:
            weight = weight.to(self.compressed.device, self.compressed.dtype)
            reason = weight_obstacle(weight)
            if reason:
                error_msgs.append(f"{key}: {reason}; call desparsify_ before loading it")
            else:
                self._hold(weight)
        others = {
            name: value
            for name, value in state_dict.items()
            if name.startswith(prefix) and name != key
        }
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
