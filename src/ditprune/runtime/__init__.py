"""RUNNING SPARSE: pruned layers that skip their zeros, where that is faster on this machine.

    decisions = sparsify_(pipeline.transformer, call)  # in place; times every layer
    ...                                                # run the pipeline as before
    desparsify_(pipeline.transformer)                  # the Linears are back

README.md says which backends there are, and what to know.
"""

from ditprune.runtime.semi_structured import SemiStructuredLinear
from ditprune.runtime.sparse_linear import SparseLinear
from ditprune.runtime.swap import Decision, desparsify_, sparsify_

__all__ = ["Decision", "SemiStructuredLinear", "SparseLinear", "desparsify_", "sparsify_"]
