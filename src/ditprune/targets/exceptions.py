"""What the structural rule cannot see by itself, as data.

Patterns are regular expressions on class names or on leaf names; figures and families are in
docs/architecture.md.
"""

from __future__ import annotations

import re

# A submodule of such a class, or a Linear of such a name, is evidence of attention in a block.
ATTENTION_CLASS = re.compile(r"attn|attention|qknorm", re.IGNORECASE)
# Query, key or value: to_q, wk, qw, Wqkv, fc_q, add_k_proj, img_attn_qkv, query_key_value.
ATTENTION_LINEAR = re.compile(
    r"^(\w*_)?(to|w|fc)?_?(q|k|v|qk|kv|qkv|query|key|value)_?(w|kv|lin|linear|proj|projection)?$"
    r"|^to_qkv_mlp_proj$",
    re.IGNORECASE,
)
# A module of such a name inside a denoiser encodes its condition: it is not the trunk.
ENCODER = re.compile(
    r"(text|image|vision|prompt|cond\w*)_?(encoder|model|tower|stage_model)|^conditioner$"
    r"|^(clip|t5|umt5|byt5|bert|llm|siglip|dino\w*)(_|\d|$)|^(vae|first_stage_model|tokenizer)$",
    re.IGNORECASE,
)
# A module of such a name or class brings inputs to the width of the blocks.
EMBEDDER = re.compile(r"emb", re.IGNORECASE)
# A list of such a name, or of such classes, holds no blocks: embedders, heads, projections.
NO_BLOCKS = re.compile(r"emb|final|head|proj|norm|(^|_)out(put)?(s|_|$)", re.IGNORECASE)
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
