"""Tiny denoisers that are shrunk by hand, in memory: a head, neurons, a block and a rank less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditprune.checkpoints.shrunk.build import drop_blocks_
from ditprune.checkpoints.shrunk.form import Form, mark_
from ditprune.checkpoints.shrunk.low_rank import Factors, set_low_rank_
from ditprune.checkpoints.shrunk.resize import resize_
from tiny_denoisers import FAMILIES, redraw_

HEAD, NEURONS, RANK = 16, 48, 5


@dataclass(frozen=True)
class Cuts:
    """What goes, with the names after blocks have gone.

    Args:
        rows, columns: by layer, which of its rows and of its columns stay.
    """

    form: Form
    rows: dict[str, list[int]]
    columns: dict[str, list[int]]


def _dit() -> Cuts:
    a, b = "transformer_blocks.0", "transformer_blocks.1"
    head, neurons = list(range(HEAD, 2 * HEAD)), list(range(NEURONS))
    rows = {f"{a}.attn1.{name}": head for name in ("to_q", "to_k", "to_v")}
    rows |= {f"{b}.ff.net.0.proj": neurons}
    columns = {f"{a}.attn1.to_out.0": head, f"{b}.ff.net.2": neurons}
    numbers = {f"{a}.attn1": {"heads": 1, "inner_dim": HEAD, "inner_kv_dim": HEAD}}
    form = Form(numbers, {"transformer_blocks": (0, 2)}, {f"{b}.norm1.linear": RANK})
    return Cuts(form, rows, columns)


def _flux() -> Cuts:
    a, b = "transformer_blocks.0", "single_transformer_blocks.0"
    head, neurons = list(range(HEAD)), list(range(NEURONS))
    names = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    rows = {f"{a}.attn.{name}": head for name in names}
    rows |= {f"{b}.attn.{name}": head for name in names[:3]}
    rows |= {f"{a}.ff.net.0.proj": neurons, f"{b}.proj_mlp": neurons}
    columns = {f"{a}.attn.to_out.0": head, f"{a}.attn.to_add_out": head}
    columns |= {f"{a}.ff.net.2": neurons, f"{b}.proj_out": [*head, *(32 + n for n in neurons)]}
    numbers = {
        f"{a}.attn": {"heads": 1, "inner_dim": HEAD}, f"{b}.attn": {"heads": 1, "inner_dim": HEAD},
        b: {"mlp_hidden_dim": NEURONS},
    }  # fmt: skip
    ranks = {f"{a}.norm1.linear": RANK, f"{b}.norm.linear": RANK}
    return Cuts(Form(numbers, {"single_transformer_blocks": (1,)}, ranks), rows, columns)


CUTS: dict[str, Callable[[], Cuts]] = {
    "DiTTransformer2DModel": _dit, "FluxTransformer2DModel": _flux,
}  # fmt: skip


@torch.no_grad()
def shrink_by_hand_(denoiser: nn.Module) -> Form:
    """Make it smaller in place, with the form in its config; its form."""
    cuts = CUTS[type(denoiser).__name__]()
    drop_blocks_(denoiser, cuts.form.blocks)
    for path, rank in cuts.form.ranks.items():
        weight, bias = denoiser.get_submodule(path).parameters()
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        factors = Factors((s[:rank, None] * v[:rank]).contiguous(), u[:, :rank].contiguous(), bias)
        set_low_rank_(denoiser, {path: factors})
    tensors: dict[str, Tensor] = {}
    for name, stay in cuts.rows.items():
        layer = denoiser.get_submodule(name)
        tensors |= {f"{name}.weight": layer.weight[stay], f"{name}.bias": layer.bias[stay]}
    for name, stay in cuts.columns.items():
        tensors[f"{name}.weight"] = denoiser.get_submodule(name).weight[:, stay]
    resize_(denoiser, tensors, cuts.form.numbers)
    mark_(denoiser, cuts.form)
    return cuts.form


def dense_tiny(name: str) -> nn.Module:
    """A tiny denoiser of this class, which a pipeline can call."""
    import diffusers

    more = {"num_layers": 3, "num_embeds_ada_norm": 1000} if name == "DiTTransformer2DModel" else {}
    return redraw_(getattr(diffusers, name)(**{**FAMILIES[name].config, **more}), 0)


def shrunk_tiny(name: str) -> nn.Module:
    """The same, shrunk."""
    denoiser = dense_tiny(name)
    shrink_by_hand_(denoiser)
    return denoiser
