"""A 2:4 layer for `gpu.py`, by whichever algorithm of cuSPARSELt is fastest for its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpu_products import Choice, search, searched

_choices: dict[tuple[int, int, int, bool], Choice] = {}


# As an operator of its own a compiled graph takes it whole.
@torch.library.custom_op(
    "ditprune_bench::searched", mutates_args=(),
    schema="(Tensor rows, Tensor compressed, Tensor? bias, int alg_id, int split_k, int mode, "
    "int num_out) -> Tensor",
)  # fmt: skip
def _searched(rows, compressed, bias, alg_id, split_k, mode, num_out):  # type: ignore[no-untyped-def]
    return searched(rows, compressed, bias, Choice(alg_id, split_k, mode))


@_searched.register_fake
def _(rows, compressed, bias, alg_id, split_k, mode, num_out):  # type: ignore[no-untyped-def]
    return rows.new_empty(rows.shape[0], num_out)


class Searched(nn.Module):
    """In place of a 2:4 Linear: cuSPARSELt by the algorithm that was fastest for its tokens."""

    def __init__(self, linear: nn.Linear, num_tokens: int) -> None:
        super().__init__()
        self.num_in, self.num_out = linear.in_features, linear.out_features
        self.register_buffer("compressed", torch._cslt_compress(linear.weight.detach()))
        self.bias = linear.bias
        self.choice = self._choose(linear, num_tokens)

    def _choose(self, linear: nn.Linear, num_tokens: int) -> Choice:
        key = (self.num_in, self.num_out, num_tokens, self.bias is None)
        if key not in _choices:
            weight = linear.weight
            rows = torch.randn(num_tokens, self.num_in, dtype=weight.dtype, device=weight.device)
            expected = linear(rows)
            _choices[key] = search(rows, self.compressed, self.bias, expected).choice
        return _choices[key]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        rows = input.reshape(-1, self.num_in).contiguous()
        if torch.compiler.is_compiling():
            out = _searched(rows, self.compressed, self.bias, *self.choice, self.num_out)
        else:
            out = searched(rows, self.compressed, self.bias, self.choice)
        return out.reshape(*input.shape[:-1], self.num_out)
