"""How does a Linear run sparse on a CPU? It stores its nonzeros only and calls the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.errors import KernelError
from ditprune.runtime.kernel_call import multiply, multiply_in_graph
from ditprune.runtime.packed import Packed, pack, takes_pairs, unpack
from ditprune.runtime.stand_in import StandIn


class SparseLinear(StandIn):
    """Replaces a Linear on the CPU; gradients reach inputs and bias only.

    Args:
        linear: the layer to replace.
        in_pairs: store a bfloat16 weight in pairs. The layer then takes bfloat16 inputs only;
            after `.to()` another dtype its weights are stored one by one.
    """

    values: Tensor
    columns: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(self, linear: nn.Linear, in_pairs: bool = False) -> None:
        self._in_pairs = in_pairs
        super().__init__(linear)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        """[..., in_features] → [..., out_features], in the dtype of the input.

        Raises KernelError for inputs of another width.
        """
        inputs = self._checked(input)
        if torch.compiler.is_compiling():
            return multiply_in_graph(inputs, *self.packed, self.out_features, self.bias)
        if not torch.is_grad_enabled():
            return multiply(inputs, self.packed, self.out_features, self.bias)
        return _Multiply.apply(inputs, self.bias, self)

    def forward_gelu(self, inputs: Tensor) -> Tensor:
        """GELU, approximated by tanh, of the result of `forward`; no gradient, no torch.compile."""
        return multiply(self._checked(inputs), self.packed, self.out_features, self.bias, gelu=True)

    def _checked(self, inputs: Tensor) -> Tensor:
        if inputs.shape[-1] != self.in_features:
            raise KernelError(
                f"sparse layer: inputs have {inputs.shape[-1]} channels, expected "
                f"{self.in_features}"
            )
        is_cast = torch.is_autocast_enabled("cpu")
        return inputs.to(torch.get_autocast_dtype("cpu")) if is_cast else inputs

    @property
    def packed(self) -> Packed:
        return Packed(self.values, self.columns, self.counts, self.starts)

    def _dense(self) -> Tensor:
        return unpack(self.packed, self.out_features, self.in_features)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.packed)

    @property
    def _like(self) -> Tensor:
        dtype = torch.bfloat16 if self.packed.in_pairs else self.values.dtype
        return torch.empty(0, dtype=dtype, device=self.values.device)

    def _hold(self, weight: Tensor) -> None:
        # Buffers, so that `.to`, deepcopy and pickle work without code here.
        in_pairs = self._in_pairs and takes_pairs(weight)
        for name, tensor in pack(weight, in_pairs)._asdict().items():
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SparseLinear:
        before = self._like
        super()._apply(fn, recurse)
        after = fn(before)
        if self.packed.in_pairs and after.dtype != before.dtype:
            self._hold(self._dense().to(after.dtype))
        return self

    def extra_repr(self) -> str:
        values = self.values
        in_pairs = self.packed.in_pairs
        num_nonzero = values.view(torch.bfloat16).count_nonzero() if in_pairs else len(values)
        sparsity = 1 - int(num_nonzero) / (self.in_features * self.out_features)
        return f"{super().extra_repr()}, sparsity={sparsity:.3f}"


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
            inputs_gradient = gradient @ ctx.layer._dense().to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            bias_gradient = gradient.reshape(-1, gradient.shape[-1]).sum(0).to(ctx.layer.bias.dtype)
        return inputs_gradient, bias_gradient, None
