"""What do people call the layers and the numbers of attentions and MLPs? Data for the rule.

A name only proposes; `checks.py` tries what is proposed on a call.
"""

from __future__ import annotations

import re

from ditprune.targets import exceptions

# Projections that hold query, key, value and the first layer of an MLP, and what is behind them.
PARALLEL = exceptions.FUSED_LINEAR
# A projection that brings what heads give back to the width of the block.
_OUTPUT = re.compile(
    r"^(\w*_)?(out(put)?|o|wo|w_o|dense|proj|linear2)(_?(proj|projection|layer|lin|linear))?$",
    re.IGNORECASE,
)
# What has rows for each head beside query, key and value: gates, biases, decays.
_GATE = re.compile(r"gate|bias|beta|(^|_)g(_|$)", re.IGNORECASE)
# A norm of queries or keys, not of what they are projected from.
QK_NORM = re.compile(
    r"^(?!pre|input)(\w*_)?(norm)?(q|k|qk|query|key)(norm)?(_\w*)?$", re.IGNORECASE
)
_EXPERT = re.compile(r"(^|\.)(routed_)?experts?\.", re.IGNORECASE)

# Numbers that forwards read.
HEADS = re.compile(
    r"^(n|num|no)?_?(local|attn|attention|query|q)?_?(n|num)?_?heads?(_num)?$|^sliceable_head_dim$",
    re.IGNORECASE,
)
KV_HEADS = re.compile(r"^(n|num)?_?(kv|key_value)_?heads?$|^n_local_kv_heads$", re.IGNORECASE)
INNER = re.compile(
    r"^(inner|attn|attention|attn_inner|q|value|key)_(dim|size|width)$|^all_head_size$",
    re.IGNORECASE,
)
KV_INNER = re.compile(r"^(inner_kv|kv_inner|kv)_(dim|size|width)$", re.IGNORECASE)
# What a module says of its input's width, and may mean that of its heads.
OUTER = re.compile(r"^(hidden|embed|model|d)?_?(dim|size|width|model|embed|features|channels)$")
# Of a block whose one projection holds all of this: the width of the block, read as that of heads.
PARALLEL_INNER = re.compile(r"^hidden_(dim|size)$", re.IGNORECASE)
NEURONS = re.compile(
    r"^(mlp|ff|ffn|feed_?forward|hidden|inner|intermediate|moe)(_context)?"
    r"(_?(hidden|inner|intermediate))?(_?(dim|size|features|channels|width))?$|^(d_ff|dim_ff)$",
    re.IGNORECASE,
)
SIZES = re.compile(r"^(\w+_)?(split_(sizes?|dims?)|sizes)$", re.IGNORECASE)

_WORDS = {"query": "q", "key": "k", "value": "v"}


# What tells the streams of a joint attention apart: qkv_x, to_q_t, q_proj_cam.
_STREAM = re.compile(r"_(x|y|t|a|b|img|txt|cam)$")


def leaf_of(path: str) -> str:
    """The last part of a path that is no number."""
    return next((part for part in reversed(path.split(".")) if not part.isdecimal()), "")


def projects(path: str) -> str:
    """Which of query, key and value a layer of this path holds, as letters."""
    leaf = leaf_of(path)
    if PARALLEL.match(leaf) or leaf.lower() in ("query_key_value", "c_attn"):
        return "qkv"
    match = exceptions.ATTENTION_LINEAR.match(_STREAM.sub("", leaf))
    if match is None:
        return ""
    word, suffix = match.group(3).lower(), (match.group(4) or "").lower()
    return _WORDS.get(word, word) + ("kv" if suffix == "kv" else "")  # "qkv" is read as q and kv


def is_output(path: str) -> bool:
    """Whether a layer seems to project what heads give."""
    leaf = leaf_of(path)
    return (
        not projects(path) and not _GATE.search(leaf) and bool(_OUTPUT.match(_STREAM.sub("", leaf)))
    )


def is_gate(path: str) -> bool:
    """Whether a layer seems to hold something else for each head."""
    return bool(_GATE.search(leaf_of(path)))


def is_routed(path: str) -> bool:
    """Whether a layer lies in an expert that gets only the rows that a router sends it."""
    return bool(_EXPERT.search(f"{path}."))
