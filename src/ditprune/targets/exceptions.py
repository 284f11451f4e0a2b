"""What the structural rule cannot see by itself, as data.

Patterns are regular expressions on class names or on leaf names; figures and families are in
docs/architecture.md.
"""

from __future__ import annotations

import re

# A submodule of such a class, or a Linear of such a name, is evidence of attention in a block.
ATTENTION_CLASS = re.compile(r"attn|attention|qknorm", re.IGNORECASE)
ATTENTION_LINEAR = re.compile(
    r"^(to_|w|linear_)?(q|k|v|qk|kv|qkv)(_linear|_proj|kv)?$|^(to_)?(query|key|value)(_proj)?$|^to_qkv_mlp_proj$"
)
# One wide Linear that holds query, key, value and more (FLUX single blocks in the original code).
FUSED_LINEAR = re.compile(r"^(linear1|to_qkv_mlp_proj)$")
FUSED_RATIO = 3

# Inside a block, Linears below such a class embed the timestep or the label; the original models
# keep them outside the blocks (DiTTransformer2DModel copies them into every `norm1.emb`).
EMBEDDER_CLASS = re.compile(r"embed", re.IGNORECASE)

# One output per head or per expert: too few rows to compare, too important to lose.
FEW_OUTPUTS = 128
FEW_OUTPUTS_RATIO = 16
GATE_LINEAR = re.compile(r"^(gate|router|to_gate_logits|beta_proj)$")
GATE_RATIO = 4

# Leaf names of the Linears that diffusers' `fuse_qkv_projections()` makes, and what each copies.
FUSED_COPIES = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}

# A class of attention processor that has weights of its own is an adapter's (IP-Adapter).
ADAPTER_CLASS = re.compile(r"AttnProcessor|IPAdapter")

# What `runtime.sparsify_` puts in a Linear's place.
SPARSE_CLASSES = ("SparseLinear", "SemiStructuredLinear")

# What a layer does, by its path below its block; the first match names the role.
ROLES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "modulation",
        re.compile(
            r"adaln|ada_ln|modulation|film|scale_output|(^|[._])mod([._]|$)|(^|\.)norm\w*\.lin"
        ),
    ),
    (
        "mlp",
        re.compile(
            r"(^|[._])(mlp|ff|ffn|feed_forward|experts?|densereludense|transition)([._]|$)"
            r"|ff_context|fc[12]$|(gate|up|down)_proj$"
        ),
    ),
    ("attention", re.compile(r"attn|attention|(^|[._])(to_)?(q|k|v|qkv|out|proj)([._\d]|$)")),
)
