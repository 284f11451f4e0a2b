"""A Linear that holds the nonzeros of its weight only and multiplies with the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.runtime.multiply import multiply, multiply_in_graph
from ditprune.runtime.packed import Packed, pack, unpack


class SparseLinear(nn.Module):
    """In place of a Linear for inference on the CPU; gradients reach inputs and bias only.

    Its state dict is the Linear's: `weight` is unpacked when saved and packed when loaded. It is
    no `nn.Linear`, so that what writes into `linear.weight` refuses it instead of writing into a
    copy.
    """

    bias: nn.Parameter | None
    values: Tensor
    columns: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_requires_grad = linear.weight.requires_grad
        self.register_parameter("bias", linear.bias)
        self._hold(pack(linear.weight))
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        """[..., in_features] → [..., out_features], in the dtype of the input."""
        if torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))  # noqa: A001
        if torch.compiler.is_compiling():
            return multiply_in_graph(input, *self.packed, self.out_features, self.bias)
        if not torch.is_grad_enabled():
            return multiply(input, self.packed, self.out_features, self.bias)
        return _Multiply.apply(input, self.bias, self)

    @property
    def packed(self) -> Packed:
        return Packed(self.values, self.columns, self.counts, self.starts)

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew at each access; writing into it changes nothing."""
        return unpack(self.packed, self.out_features, self.in_features)

    @property
    def size_bytes(self) -> int:
        """What the packed weight takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.packed)

    def to_linear(self) -> nn.Linear:
        """The Linear it stands for, with the same bias object."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight, requires_grad=self.weight_requires_grad)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        sparsity = 1 - len(self.values) / (self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, sparsity={sparsity:.3f}"
        )

    def _hold(self, packed: Packed) -> None:
        # Buffers, so that `.to`, deepcopy and pickle need nothing of ours.
        for name, tensor in packed._asdict().items():
            self.register_buffer(name, tensor, persistent=False)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
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
            self._hold(pack(weight.to(self.values)))
        others = {
            name: value
            for name, value in state_dict.items()
            if name.startswith(prefix) and name != key
        }
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor | None, layer: SparseLinear) -> Tensor:
        ctx.layer = layer
        return multiply(inputs, layer.packed, layer.out_features, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        inputs_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            inputs_gradient = gradient @ ctx.layer.weight.to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            bias_gradient = gradient.flatten(0, -2).sum(0).to(ctx.layer.bias.dtype)
        return inputs_gradient, bias_gradient, None
