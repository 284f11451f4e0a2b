"""Denoisers as people write them outside diffusers, each with one habit that tools trip over.

`BUILDS` maps a name to a function that gives a denoiser and its calls. Every build works from
inspecting to running sparse, or is refused; what refuses it is in `REFUSED`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

WIDTH, TOKENS, ROWS = 16, 6, 4
Made = tuple[nn.Module, list[Any]]
BUILDS: dict[str, Callable[[], Made]] = {}
# Of builds that `preset="best"` refuses: what the line says.
REFUSED: dict[str, str] = {}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.proj(scaled_dot_product_attention(*self.qkv(h).chunk(3, -1)))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), mlp()

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(h)
        return h + self.mlp(h)


class Denoiser(nn.Module):
    """Tokens [N, L, C] and a time [N] in, tokens out."""

    block: Callable[[], nn.Module] = Block
    depth = 1

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([type(self).block() for _ in range(type(self).depth)])
        self.head = nn.Linear(WIDTH, WIDTH)

    def trunk(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h)
        return self.head(h)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.trunk(x + t[:, None, None])


def noise(*shape: int) -> Tensor:
    return torch.randn(shape)


def calls(rows: int = ROWS, number: int = 3, **more: Any) -> list[Any]:
    """Calls of `Denoiser`; what else they take is a value, or a function of the rows."""
    return [
        {"x": noise(rows, TOKENS, WIDTH), "t": torch.full((rows,), i / number)}
        | {name: value(rows) if callable(value) else value for name, value in more.items()}
        for i in range(number)
    ]


def build(name: str | Callable[[], Made] = "", refused: str = "") -> Any:
    """Put a function into the table, and the line that its build ends in."""

    def add(make: Callable[[], Made]) -> Callable[[], Made]:
        BUILDS[make.__name__] = make
        if refused:
            REFUSED[make.__name__] = refused
        return make

    return add(name) if callable(name) else add


# --- How calls have rows ---


@build
def a_row_of_positions_for_each_item() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, img_ids: Tensor) -> Tensor:
            return super().forward(x + img_ids.sum(-1, keepdim=True), t)

    return Build(), calls(img_ids=lambda n: torch.arange(6.0)[None, :, None].expand(n, 6, 3) / 6)


@build
def positions_that_must_be_as_many_as_the_items() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, position_ids: Tensor) -> Tensor:
            if len(position_ids) != len(x):
                raise ValueError("a row of ids for each item")
            return super().forward(x + position_ids[..., None] / 9, t)

    return Build(), calls(position_ids=lambda n: torch.arange(TOKENS).expand(n, TOKENS))


@build
def a_table_as_long_as_the_rows() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, table: Tensor) -> Tensor:
            return super().forward(x + table, t)

    return Build(), calls(rows=TOKENS, table=noise(TOKENS, WIDTH))


@build
def a_table_and_ids_as_long_as_the_rows() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, txt_ids: Tensor, bias: Tensor) -> Tensor:
            return super().forward(x + bias[:, None] + txt_ids[:, :1, None], t)

    more = {"txt_ids": lambda n: noise(n, 3), "bias": noise(TOKENS)}
    return Build(), calls(rows=TOKENS, **more)


@build
def a_scale_for_each_token_by_position() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x * scale[:, None], t)

    made = calls(rows=TOKENS)
    return Build(), [((call["x"], call["t"], torch.rand(TOKENS)), {}) for call in made]


@build
def everything_as_long_as_the_rows() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, table: Tensor, shift: Tensor) -> Tensor:
            return super().forward(x + table + shift[:, None, None], t)

    made = [{"x": noise(WIDTH, WIDTH, WIDTH), "t": torch.rand(WIDTH)} for _ in range(2)]
    return Build(), [c | {"table": noise(WIDTH, WIDTH), "shift": noise(WIDTH)} for c in made]


@build
def one_mapping_for_all_arguments() -> Made:
    class Build(Denoiser):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return super().forward(batch["x"], batch["t"])

    return Build(), [((call,), {}) for call in calls()]


@build
def a_forward_that_draws() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(len(x))
            return super().forward(x + 0.1 * torch.randn(x.shape, generator=generator), t)

    return Build(), calls()


@build
def one_row_at_a_time() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            if len(x) != 1:
                raise AssertionError("this model takes one row")
            return super().forward(x, t)

    return Build(), calls(rows=1, number=4)


@build
def a_fixed_number_of_rows() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x.reshape(ROWS, TOKENS, WIDTH), t)

    return Build(), calls()


@build
def rows_that_depend_on_each_other() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x - x.mean(0, keepdim=True), t)

    return Build(), calls()


@build
def tokens_before_rows() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x.transpose(0, 1), t).transpose(0, 1)

    return Build(), [call | {"x": call["x"].transpose(0, 1)} for call in calls()]


@build
def one_number_for_the_time() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.trunk(x + t)

    return Build(), [call | {"t": call["t"][0]} for call in calls()]


@build
def the_time_a_plain_number() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: float) -> Tensor:
            return self.trunk(x + t)

    return Build(), [call | {"t": i / 3} for i, call in enumerate(calls())]


@build
def calls_of_unlike_forms() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return super().forward(x if cond is None else x + cond[:, None], t)

    return Build(), [*calls(), *calls(rows=2), *calls(cond=lambda n: noise(n, WIDTH))]


@build
def conditions_in_a_nest() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
            return super().forward(x + cond["text"][0][:, None] + cond["table"], t)

    cond = {"text": (noise(ROWS, WIDTH),), "table": noise(TOKENS, WIDTH), "scale": 2.0}
    return Build(), calls(cond=cond)


@build(refused="writes into its argument 'x'.*x.clone")
def arguments_that_are_written_into() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x.mul_(0.9), t)

    return Build(), calls()


# --- What comes out ---


def with_output(change: Callable[[Tensor], Any]) -> nn.Module:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Any:
            return change(super().forward(x, t))

    return Build()


@dataclasses.dataclass
class Output:
    velocity: Tensor
    num_tokens: int = TOKENS


@build
def a_mapping_out() -> Made:
    return with_output(lambda h: {"x": h}), calls()


@build
def a_list_and_a_mapping_out() -> Made:
    return with_output(lambda h: ([h], {})), calls()


@build
def a_dataclass_out() -> Made:
    return with_output(Output), calls()


@build
def a_nest_out() -> Made:
    return with_output(lambda h: {"out": (None, {"video": h, "audio": h[:, :2] * 3})}), calls()


@build
def a_loss_beside_the_noise() -> Made:
    return with_output(lambda h: (h, h.square().mean())), calls()


@build
def integers_beside_the_noise() -> Made:
    return with_output(lambda h: (h.argmax(-1), h)), calls()


@build
def a_list_of_rows_in_and_out() -> Made:
    class Build(Denoiser):
        def forward(self, x: list[Tensor], t: Tensor) -> list[Tensor]:
            return list(super().forward(torch.stack(x), t))

    return Build(), [call | {"x": list(call["x"])} for call in calls()]


@build
def rows_of_unlike_lengths() -> Made:
    class Build(Denoiser):
        def forward(self, x: list[Tensor], t: Tensor) -> list[Tensor]:
            pairs = zip(x, t, strict=True)
            return [super(Build, self).forward(row[None], s[None])[0] for row, s in pairs]

    lengths = (4, 6, 5)
    return Build(), [
        {"x": [noise(n, WIDTH) for n in lengths], "t": torch.rand(3)} for _ in range(3)
    ]


@build(refused="without a floating tensor")
def nothing_but_text_out() -> Made:
    return with_output(lambda h: "done"), calls()


# --- Which argument is the noisy one ---


@build
def the_time_before_the_sample() -> Made:
    return Denoiser(), [{"t": call["t"], "x": call["x"]} for call in calls()]


@build
def a_condition_before_the_sample() -> Made:
    class Build(Denoiser):
        def forward(self, cond: Tensor, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x + cond, t)

    return Build(), [((noise(*call["x"].shape), call["x"], call["t"]), {}) for call in calls()]


@build
def the_sample_by_name_only() -> Made:
    class Build(Denoiser):
        def forward(self, t: Tensor, *, noisy: Tensor, context: Tensor) -> Tensor:
            return super().forward(noisy + context[:, None], t)

    return Build(), [
        ((call["t"],), {"context": noise(ROWS, WIDTH), "noisy": call["x"]}) for call in calls()
    ]


@build
def integers_for_a_sample() -> Made:
    class Build(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, WIDTH)

        def forward(self, tokens: Tensor, t: Tensor) -> Tensor:
            return super().forward(self.table(tokens), t)

    return Build(), [
        {"tokens": torch.randint(9, (ROWS, TOKENS)), "t": call["t"]} for call in calls()
    ]


# --- Where gradients do not go ---


class Experts(Block):
    """Its MLP runs without gradients, as in code for inference only."""

    context: Callable[[], Any] = torch.no_grad

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(h)
        with type(self).context():
            more = self.mlp(h)
        return h + more


@build
def experts_without_gradients() -> Made:
    class Build(Denoiser):
        block = Experts

    return Build(), calls()


@build
def a_detached_half() -> Made:
    class Half(Block):
        def forward(self, h: Tensor) -> Tensor:
            return h + self.attn(h) + self.mlp(h).detach()

    class Build(Denoiser):
        block = Half

    return Build(), calls()


@build
def an_expert_that_few_rows_reach() -> Made:
    class Sparse(Block):
        def __init__(self) -> None:
            super().__init__()
            self.rare = nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor) -> Tensor:
            h = super().forward(h)
            chosen = h[..., 0].mean(1) > 5
            return h + self.rare(h) * 0.5 if chosen.any() else h

    class Build(Denoiser):
        block = Sparse

    made = calls(number=2)
    made[0]["x"][0, :, 0] += 40
    return Build(), made


@build(refused="takes gradients and gets none")
def a_forward_without_gradients() -> Made:
    class Build(Denoiser):
        @torch.no_grad()
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t)

    return Build(), calls()


@build(refused="takes gradients and gets none")
def a_forward_in_inference_mode() -> Made:
    class Build(Denoiser):
        @torch.inference_mode()
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t)

    return Build(), calls()


@build(refused=r"made under torch\.inference_mode")
def weights_made_in_inference_mode() -> Made:
    with torch.inference_mode():
        denoiser = Denoiser()
    return denoiser, calls()


@build
def calls_made_in_inference_mode() -> Made:
    with torch.inference_mode():
        made = calls()
    return Denoiser(), made


# --- What cannot be copied ---


@build
def locks_and_files_inside() -> Made:
    denoiser = Denoiser()
    denoiser.local, denoiser.lock = threading.local(), threading.Lock()
    denoiser.file = Path(os.devnull).open()  # noqa: SIM115 (it stays open, as in a logger)
    denoiser.scale = lambda h: h
    return denoiser, calls()


@build
def a_tensor_with_its_graph_inside() -> Made:
    denoiser = Denoiser()
    denoiser.last = denoiser.blocks[0](noise(1, TOKENS, WIDTH))
    return denoiser, calls()


@build
def a_cache_that_each_call_fills() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.last = super().forward(x, t)
            return self.last

    return Build(), calls()


@build
def a_lock_among_the_arguments() -> Made:
    class Build(Denoiser):
        def forward(self, x: Tensor, t: Tensor, lock: Any) -> Tensor:
            with lock:
                return super().forward(x, t)

    lock = threading.Lock()
    return Build(), [call | {"lock": lock} for call in calls()]


# --- Which layers there are ---


class Doubling(nn.Linear):
    """Twice the outputs that it says, as fused gates have."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, 2 * num_out)
        self.out_features = num_out

    def forward(self, h: Tensor) -> Tensor:
        up, gate = super().forward(h).chunk(2, -1)
        return up * gelu(gate)


@build
def subclasses_of_linear() -> Made:
    class Named(nn.Linear):
        pass

    class Gated(Block):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(Doubling(WIDTH, 2 * WIDTH), Named(2 * WIDTH, WIDTH))

    class Build(Denoiser):
        block = Gated

    return Build(), calls()


@build
def the_encoder_layers_of_torch() -> Made:
    class Build(Denoiser):
        block = functools.partial(
            nn.TransformerEncoderLayer, WIDTH, 2, 2 * WIDTH, batch_first=True, dropout=0.0
        )

    Build.block = staticmethod(Build.block)
    return Build(), calls()


@build
def the_attention_of_torch() -> Made:
    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.mlp = nn.MultiheadAttention(WIDTH, 2, batch_first=True), mlp()

        def forward(self, h: Tensor) -> Tensor:
            return h + self.mlp(self.attn(h, h, h, need_weights=False)[0])

    class Build(Denoiser):
        block = Joint

    return Build(), calls()


@build
def the_encoder_of_torch() -> Made:
    class Build(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.encoder(x + t[:, None, None])

    return Build(), calls()


@build
def an_expert_that_no_row_reaches() -> Made:
    class Idle(Block):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor) -> Tensor:
            h = super().forward(h)
            return self.idle(h) if h.isinf().any() else h

    class Build(Denoiser):
        block = Idle

    return Build(), calls()


@build
def blocks_between_other_things() -> Made:
    class Build(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(WIDTH, WIDTH), nn.Sequential(Block(), nn.Identity(), Block()),
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH),
            )  # fmt: skip
            self.blocks = nn.ModuleList()

        def trunk(self, h: Tensor) -> Tensor:
            return self.net(h)

    return Build(), calls()


@build
def projections_that_are_read_and_not_called() -> Made:
    class Stacked(Block):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor) -> Tensor:
            weight = torch.cat([self.to_q.weight, self.to_k.weight])
            q, k = linear(h, weight).chunk(2, -1)
            return super().forward(h + scaled_dot_product_attention(q, k, h))

    class Build(Denoiser):
        block = Stacked

    return Build(), calls()


@build
def a_compiled_block() -> Made:
    denoiser = Denoiser()
    denoiser.blocks[0].compile(backend="eager")
    return denoiser, calls()


@build
def a_compiled_denoiser() -> Made:
    return torch.compile(Denoiser(), backend="eager"), calls()


# --- Where the blocks are ---


def flat(*names: str) -> type[nn.Module]:
    """A class of blocks whose attention is Linears of these names beside the MLP."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                fused = 3 if "qkv" in name.lower() or name in ("c_attn", "query_key_value") else 1
                setattr(self, name, nn.Linear(WIDTH, fused * WIDTH))
            self.mlp = mlp()

        def forward(self, h: Tensor) -> Tensor:
            parts = [getattr(self, name)(h) for name in names]
            q, k, v = parts[0].chunk(3, -1) if parts[0].shape[-1] > WIDTH else parts[:3]
            return h + scaled_dot_product_attention(q, k, v) + self.mlp(h)

    return Flat


# What people call the Linears of an attention.
FLAT = (
    ("qw", "kw", "vw"), ("attn_qkv",), ("c_attn",), ("query_key_value",), ("Wqkv",), ("W_QKV",),
    ("q_lin", "k_lin", "v_lin"), ("toQ", "toK", "toV"), ("in_proj_qkv",), ("wq", "wk", "wv"),
    ("img_attn_qkv",), ("fc_q", "fc_k", "fc_v"), ("query_proj", "key_proj", "value_proj"),
)  # fmt: skip


@build
def flat_projections() -> Made:
    class Build(Denoiser):
        block = flat("qw", "kw", "vw")

    return Build(), calls()


@build
def flat_and_fused_projections() -> Made:
    class Build(Denoiser):
        block = flat("Wqkv")

    return Build(), calls()


@build
def lists_of_lists() -> Made:
    class Build(Denoiser):
        block = staticmethod(lambda: nn.ModuleList([Attention(), mlp()]))

        def trunk(self, h: Tensor) -> Tensor:
            for attention, feed_forward in self.blocks:
                h = h + attention(h)
                h = h + feed_forward(h)
            return self.head(h)

    return Build(), calls()


@build
def attention_and_mlp_in_turns() -> Made:
    class Build(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Attention(), mlp(), Attention(), mlp()])

    return Build(), calls()


@build
def mappings_in_a_list() -> Made:
    class Build(Denoiser):
        block = staticmethod(lambda: nn.ModuleDict({"attn": Attention(), "ff": mlp()}))

        def trunk(self, h: Tensor) -> Tensor:
            for block in self.blocks:
                h = h + block["attn"](h)
                h = h + block["ff"](h)
            return self.head(h)

    return Build(), calls()


@build
def an_identity_in_the_list() -> Made:
    denoiser = Denoiser()
    denoiser.blocks.insert(1, nn.Identity())
    return denoiser, calls()


@build
def a_block_without_attention_in_the_list() -> Made:
    denoiser = Denoiser()
    denoiser.blocks.append(mlp())
    return denoiser, calls()


@build
def mlps_alone() -> Made:
    class Build(Denoiser):
        block = staticmethod(mlp)

    return Build(), calls()


@build
def two_kinds_of_blocks() -> Made:
    class Build(Denoiser):
        block = flat("qkv")

        def __init__(self) -> None:
            super().__init__()
            self.double_blocks = nn.ModuleList([flat("img_in", "img_out", "img_mix")()])

        def trunk(self, h: Tensor) -> Tensor:
            return super().trunk(self.double_blocks[0](h))

    return Build(), calls()


@build
def a_heavier_text_encoder_inside() -> Made:
    class Build(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.text_encoder = nn.Module()
            layers = [nn.TransformerEncoderLayer(2 * WIDTH, 4, 64) for _ in range(4)]
            self.text_encoder.layers = nn.ModuleList(layers)

    return Build(), calls()
