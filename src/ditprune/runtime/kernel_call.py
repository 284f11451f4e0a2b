"""How are dense tokens multiplied with a packed weight? By the kernel, after every check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditprune.errors import KernelError
from ditprune.runtime import build
from ditprune.runtime.outputs import empty
from ditprune.runtime.packed import BLOCK, GROUP, Packed

DTYPES = (torch.float32, torch.bfloat16)
_VALUES = {torch.float32: 0, torch.bfloat16: 1, torch.int32: 2}  # as in weight.h
_PROBLEMS = {
    1: "the packed weight is not what `pack` writes; load the model again",
    2: "not enough memory for the transposed tokens; call it with fewer",
    3: "this machine has no instruction for pairs; call desparsify_ and sparsify_ again",
}


def multiply(
    inputs: Tensor,
    packed: Packed,
    num_rows: int,
    bias: Tensor | None = None,
    instruction_set: str | None = None,
    gelu: bool = False,
) -> Tensor:
    """`inputs @ weight.T + bias`, or GELU of it, computed in float32; no gradient.

    In a weight that is packed in pairs, the removed half of a kept pair is multiplied as zero. It
    turns an infinite input into NaN, as a dense product does.

    Args:
        inputs: [..., C_in], float32 or bfloat16, on the CPU, any strides; only bfloat16 if the
            weight is packed in pairs.
        packed: the weight [num_rows, C_in].
        num_rows: C_out.
        bias: [C_out].
        gelu: whether to apply GELU, approximated by tanh.
        instruction_set: a key of `build.INSTRUCTION_SETS`; the machine's widest by default.

    Returns:
        [..., C_out] in the dtype of the inputs.

    Raises:
        KernelError: no kernel, or tensors it cannot take.
    """
    num_columns = inputs.shape[-1]
    together = 2 if packed.in_pairs else 1  # inputs that one stored value multiplies
    _check(inputs, packed, num_rows, num_columns, bias)
    function = build.load_kernel(instruction_set)
    tokens = inputs.detach().reshape(-1, num_columns)
    if tokens.stride(1) != 1 or tokens.stride(0) % together or tokens.data_ptr() % 4:
        tokens = tokens.clone(memory_format=torch.contiguous_format)
    outputs = empty((*inputs.shape[:-1], num_rows), tokens.dtype)
    if len(tokens):
        bias = None if bias is None else bias.detach().float().contiguous()
        status = function(
            packed.values.data_ptr(), _VALUES[packed.values.dtype],
            packed.columns.data_ptr(), packed.counts.data_ptr(), packed.starts.data_ptr(),
            None if bias is None else bias.data_ptr(),
            len(packed.values), num_rows, num_columns // together,
            tokens.data_ptr(), tokens.dtype == torch.bfloat16, tokens.stride(0) // together,
            outputs.data_ptr(), len(tokens), gelu, torch.get_num_threads(),
        )  # fmt: skip
        if status:
            raise KernelError(f"sparse kernel: {_PROBLEMS[status]}")
    return outputs


@torch.library.custom_op(
    "ditprune::multiply",
    mutates_args=(),
    schema="(Tensor inputs, Tensor values, Tensor columns, Tensor counts, Tensor starts, "
    "int num_rows, Tensor? bias) -> Tensor",
)
def multiply_in_graph(
    inputs: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    num_rows: int,
    bias: Tensor | None,
) -> Tensor:
    """`multiply` as an operator that torch.compile can put into a graph; slower to call."""
    return multiply(inputs, Packed(values, columns, counts, starts), num_rows, bias)


@multiply_in_graph.register_fake
def _(inputs: Tensor, *others: Any) -> Tensor:
    *_, num_rows, _bias = others
    return inputs.new_empty(*inputs.shape[:-1], num_rows)


def _check(
    inputs: Tensor, packed: Packed, num_rows: int, num_columns: int, bias: Tensor | None
) -> None:
    """Check everything that the kernel relies on, except the counts, which it checks itself."""
    for name, tensor, dtypes in (
        ("inputs", inputs, (torch.bfloat16,) if packed.in_pairs else DTYPES),
        ("weight", packed.values, tuple(_VALUES)),
    ):
        if tensor.dtype not in dtypes or tensor.device.type != "cpu":
            raise KernelError(
                f"sparse kernel: {name} are {tensor.dtype} on {tensor.device}, expected "
                f"{' or '.join(str(d).removeprefix('torch.') for d in dtypes[:2])} on the CPU; "
                "call desparsify_ before moving the model elsewhere"
            )
    if packed.in_pairs and num_columns % 2:
        raise KernelError(f"sparse kernel: {num_columns} inputs are no pairs; {_PROBLEMS[1]}")
    num_packed = num_columns // 2 if packed.in_pairs else num_columns
    num_parts = -(-num_rows // GROUP) * -(-num_packed // BLOCK)
    expected = {
        "columns": (torch.uint8, len(packed.values)),
        "counts": (torch.uint8, num_parts * GROUP),
        "starts": (torch.int64, num_parts + 1),
        "values": (packed.values.dtype, packed.columns.numel()),
    }
    for name, tensor in packed._asdict().items():
        dtype, size = expected[name]
        given = (tensor.dtype, tensor.numel(), tensor.device.type, tensor.is_contiguous())
        if given != (dtype, size, "cpu", True):
            raise KernelError(
                f"sparse kernel: {name} are {tensor.dtype} {list(tensor.shape)}, expected {size} "
                f"of {dtype} for a weight [{num_rows}, {num_columns}]; {_PROBLEMS[1]}"
            )
    if bias is not None and bias.device.type != "cpu":
        raise KernelError(
            f"sparse kernel: bias is on {bias.device}, expected the CPU as for inputs and weight; "
            "call desparsify_ before moving the model elsewhere"
        )
    if num_rows < 1 or num_packed < 1 or (bias is not None and bias.numel() != num_rows):
        raise KernelError(
            f"sparse kernel: a weight [{num_rows}, {num_columns}] with a bias of "
            f"{0 if bias is None else bias.numel()}; expected one number a row"
        )
