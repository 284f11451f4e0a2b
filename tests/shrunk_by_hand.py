"""Tiny denoisers that are shrunk by hand, in memory: a head, neurons, a block and a rank less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ditprune.checkpoints.copy_folder import beside
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.shrunk.build import drop_blocks_
from ditprune.checkpoints.shrunk.form import MARK, Form, mark_, renamed
from ditprune.checkpoints.shrunk.low_rank import Factors, set_low_rank_
from ditprune.checkpoints.shrunk.resize import resize_
from ditprune.checkpoints.weights import Weights, sha256
from ditprune.pruning.job import base_of
from ditprune.shrinking.drop import drop_
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.manifest import Lowered, Went, base_before, shrunk_claims, size_of
from ditprune.shrinking.units import Cut
from ditprune.targets.blocks import find_blocks
from ditprune.writing.files import write_manifest
from folders import save_denoiser
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


# --- As `shrink` does it, with a manifest ---

DIT, FLUX = CUTS
LISTS = {DIT: {"transformer_blocks": [0, 2]}, FLUX: {"single_transformer_blocks": [1]}}
LAYER = {DIT: "transformer_blocks.2.norm1.linear", FLUX: "transformer_blocks.0.norm1.linear"}


def what_goes(denoiser: nn.Module) -> Went:
    """Half of the first group of each kind that stays, a block, and most of a rank."""
    name = type(denoiser).__name__
    blocks = LISTS[name]
    paths = [block.path for block in find_blocks(denoiser) if not block.auxiliary]
    groups, whole = find_groups(denoiser, paths)
    kept: dict[str, list[int]] = {}
    for path, group in groups.items():
        is_there = bool(renamed({path: 0}, Form(blocks=blocks)))
        if is_there and group.kind not in {groups[name].kind for name in kept}:
            kept[path] = list(range(0, group.num_units, 2))
    assert len(kept) == 2
    return Went(
        Cut(groups, kept), dict.fromkeys(kept, 0.01), whole, blocks, {LAYER[name]: Lowered(4, 1e-6)}
    )


@torch.no_grad()
def carry_out_(denoiser: nn.Module, went: Went) -> None:
    form = went.form(denoiser)
    cut_(denoiser, went.cut)
    for layer, lowered in went.ranks.items():
        u, s, v = torch.linalg.svd(denoiser.get_submodule(layer).weight, full_matrices=False)
        rank, bias = lowered.rank, denoiser.get_submodule(layer).bias
        set_low_rank_(denoiser, {layer: Factors(s[:rank, None] * v[:rank], u[:, :rank], bias)})
    (drop_ if went.blocks_in_config else drop_blocks_)(denoiser, went.blocks)
    mark_(denoiser, form)


def with_fewer_blocks(denoiser: nn.Module) -> nn.Module:
    """The ordinary DiT that has these weights."""
    config = {key: value for key, value in denoiser.config.items() if key != MARK}
    config["num_layers"] = len(denoiser.transformer_blocks)
    ordinary = type(denoiser).from_config(config)
    ordinary.load_state_dict(denoiser.state_dict())
    return ordinary


def described(
    denoiser: nn.Module, went: Went, folder: Path,
    save: Callable[[nn.Module, Path], Path] = save_denoiser, layout: str = "free",
) -> Path:  # fmt: skip
    """Shrink a denoiser, and write its folder or its pipeline's with a manifest.

    Beside it lies the one before, `FOLDER-before`.
    """
    model = locate(str(save(denoiser, folder.with_name(f"{folder.name}-before"))))
    before, weights = model.denoiser, Weights(model.denoiser)
    shapes = {entry.name: entry.shape for entry in weights.in_order()}
    base = base_before(base_of(model, before, weights, "print"), denoiser, shapes, went)
    counts = size_of(before, weights, 900)
    carry_out_(denoiser, went)
    denoiser = denoiser if layout == "free" else with_fewer_blocks(denoiser)
    here = locate(str(save(denoiser, folder)))
    smaller = Weights(here.denoiser)
    hashes = {entry.name: sha256(smaller.raw(entry)) for entry in smaller.in_order()}
    claims = shrunk_claims(
        went, {"ratio": 0.3}, base, counts, size_of(here.denoiser, smaller, 600), hashes,
        smaller.header_hashes(), beside(here, dict.fromkeys(here.denoisers, smaller))[
            next(iter(here.denoisers))
        ],
        layout,
    )  # fmt: skip
    write_manifest(here.denoiser, claims)
    return folder
