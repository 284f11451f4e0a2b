"""RUNNING SPARSE: a kernel for the CPU, 2:4 on GPUs, and the swap of the layers that gain."""

from ditprune.runtime.semi_structured import SemiStructuredLinear
from ditprune.runtime.sparse_linear import SparseLinear
from ditprune.runtime.swap import Decision, desparsify_, sparsify_

__all__ = ["Decision", "SemiStructuredLinear", "SparseLinear", "desparsify_", "sparsify_"]
