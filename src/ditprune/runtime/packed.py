"""How is a sparse weight stored for the kernel? Its nonzeros in the order in which they are read.

Rows are cut into groups of 32, columns into blocks of 64. The nonzeros are stored group by group,
in a group block by block, and in a block row by row: a value, and one byte for its column in the
block. For each row and block one byte counts them, and `starts` holds the index of the first
nonzero of each block of a group. This takes 5 bytes for a float32 nonzero and 3 for a bfloat16 one.

bfloat16 weights can be stored in pairs of neighbouring inputs, which some machines multiply with
one instruction. The format is the same, with pairs in place of weights: 5 bytes for each pair that
is not zero twice. At 50 % zeros three pairs in four are kept, at 70 % one in two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# As in kernel.cpp.
BLOCK, GROUP = 64, 32

# G groups of R rows, B blocks of C columns, Z nonzeros.


class Packed(NamedTuple):
    """A sparse weight [num_rows, num_columns]; its shape is not stored.

    Args:
        values: [Z], float32, bfloat16, or int32 with the bits of a pair of bfloat16.
        columns: [Z], uint8, within the block.
        counts: [G, B, R], uint8.
        starts: [G · B + 1], int64.
    """

    values: Tensor
    columns: Tensor
    counts: Tensor
    starts: Tensor

    @property
    def in_pairs(self) -> bool:
        return self.values.dtype == torch.int32


def takes_pairs(weight: Tensor) -> bool:
    """Whether a weight can be packed in pairs."""
    return weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0


def pack(weight: Tensor, in_pairs: bool = False) -> Packed:
    """The nonzeros of a weight [C_out, C_in]. A negative zero is a zero.

    Args:
        in_pairs: whether to store pairs; needs a weight that `takes_pairs`.
    """
    weight = _in_pairs(weight) if in_pairs else weight.detach()
    num_rows, num_columns = weight.shape
    weight = pad(weight, (0, -num_columns % BLOCK, 0, -num_rows % GROUP))
    parts_GBRC = weight.unflatten(0, (-1, GROUP)).unflatten(2, (-1, BLOCK)).transpose(1, 2)
    keep_GBRC = parts_GBRC != 0
    counts_GBR = keep_GBRC.sum(3, dtype=torch.uint8)
    columns_C = torch.arange(BLOCK, dtype=torch.uint8, device=weight.device)
    return Packed(
        values=parts_GBRC[keep_GBRC],
        columns=columns_C.expand_as(keep_GBRC)[keep_GBRC],
        counts=counts_GBR,
        starts=pad(counts_GBR.sum(2).flatten().cumsum(0), (1, 0)),
    )


def unpack(packed: Packed, num_rows: int, num_columns: int) -> Tensor:
    """The dense weight [num_rows, num_columns]."""
    values, columns, counts_GBR, _ = packed
    rows = torch.arange(counts_GBR.numel(), device=values.device)
    counts = counts_GBR.flatten().long()
    rows = rows.repeat_interleave(counts, output_size=len(values))
    positions = rows.mul_(BLOCK).add_(columns)
    parts_GBRC = values.new_zeros((*counts_GBR.shape, BLOCK))
    parts_GBRC.view(-1)[positions] = values
    dense = parts_GBRC.transpose(1, 2).flatten(2).flatten(0, 1)
    if packed.in_pairs:
        return dense[:num_rows, : num_columns // 2].contiguous().view(torch.bfloat16)
    return dense[:num_rows, :num_columns].contiguous()


def _in_pairs(weight: Tensor) -> Tensor:
    """The bits of neighbouring weights as one integer; adding 0 turns -0.0 into 0.0."""
    return (weight.detach() + 0).contiguous().view(torch.int32)


def packed_bytes(weight: Tensor, in_pairs: bool = False) -> int:
    """The size of what `pack` returns."""
    weight = _in_pairs(weight) if in_pairs else weight
    num_rows, num_columns = weight.shape
    num_groups = -(-num_columns // BLOCK) * -(-num_rows // GROUP)
    per_nonzero = weight.element_size() + 1
    return int(weight.count_nonzero()) * per_nonzero + num_groups * (GROUP + 8) + 8
