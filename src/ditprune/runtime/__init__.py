"""RUNNING SPARSE: a kernel for the CPU, and the swap of the layers it makes faster."""

from ditprune.runtime.sparse_linear import SparseLinear
from ditprune.runtime.swap import Choice, desparsify_, sparsify_

__all__ = ["Choice", "SparseLinear", "desparsify_", "sparsify_"]
