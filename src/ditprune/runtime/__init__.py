"""RUNNING SPARSE: pruned layers that skip their zeros, where that is faster on this machine.

    from ditprune.runtime import desparsify_, sparsify_

    decisions = sparsify_(pipeline.transformer, call)  # in place
    ...                                                # run the pipeline as before
    desparsify_(pipeline.transformer)                  # the Linears are back

`sparsify_` times every Linear dense and sparse at its shape, sparsity and numbers of tokens, and
swaps those whose packed weight is smaller and faster. Pass `call`, the arguments of one call of the
denoiser (`ditprune.recorded` records them), so that each layer is timed with the numbers of tokens
that it gets. Each `Decision` holds the times, or the reason why a layer stays dense.

Backends:
    cpu              any zeros, float32 and bfloat16. A C++ kernel is compiled on first use, which
                     needs a C++17 compiler; without one every layer stays dense. The kernel is
                     described in `kernel/README.md`.
    semi-structured  2:4 in float16 or bfloat16 on NVIDIA GPUs of compute capability 8.0 or more,
                     through torch. Other patterns have no GPU kernel.

What to know:
    - Run sparse for inference. Gradients of a `SparseLinear` reach inputs and bias, not the weight.
    - A sparse layer is no `nn.Linear`: `prune_` and `calibrate` refuse a denoiser that holds one,
      and LoRA does not see it. Prune first, and call `desparsify_` before changing weights.
    - Saving needs nothing special: the state dict is that of the Linear.
    - A removed weight adds nothing. Where an input is infinite, a dense layer returns NaN and a
      sparse one does not.
    - The result of the CPU kernel does not depend on the number of threads.

`ditprune bench` answers the same question for a whole model: it times its distinct layers and one
step in float32 and bfloat16, dense and sparse. Sparse pays if its fastest path beats the fastest
dense path, whatever the dtype.

`diffusers_loader` is separate from this: it lets diffusers load compact folders, as dense weights.
"""

from ditprune.runtime.semi_structured import SemiStructuredLinear
from ditprune.runtime.sparse_linear import SparseLinear
from ditprune.runtime.swap import Decision, desparsify_, sparsify_

__all__ = ["Decision", "SemiStructuredLinear", "SparseLinear", "desparsify_", "sparsify_"]
