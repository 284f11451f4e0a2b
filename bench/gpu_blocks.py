"""Stages 2 and 3 of `gpu.py`: blocks of FLUX and a DiT-XL/2, dense, shrunk and 2:4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpu_measure import (
    Clock,
    Log,
    RefusedError,
    free,
    medians,
    prune_two_of_four_,
    relative_error,
    seconds,
)  # fmt: skip
from gpu_products import default_two_of_four
from gpu_searched import Searched

EAGER, COMPILED = 2, 3
_NUM_INPUTS = 3
_ROW_S = {EAGER: 20.0, COMPILED: 40.0}
DTYPE = torch.bfloat16
# Left dense: modulation sees one token of each image.
_MODULATION = "norm"


@dataclass(frozen=True)
class Sizes:
    """Of a FLUX block and of its call."""

    width: int = 3072
    head: int = 128
    image_tokens: int = 4096
    text_tokens: int = 512

    @property
    def heads(self) -> int:
        return self.width // self.head

    @property
    def neurons(self) -> int:
        return 4 * self.width


TINY = Sizes(256, 64, 32, 16)


class Built:
    """A block or a denoiser with its calls."""

    def __init__(self, module: nn.Module, calls: list[dict[str, Any]]) -> None:
        self.module, self.calls = module.to(DTYPE).eval().requires_grad_(False), calls

    def output(self) -> Tensor:
        """Of the first call, flat."""
        found = self.module(**self.calls[0])
        found = found if isinstance(found, tuple) else (found,)
        return torch.cat([one.flatten() for one in found])

    def works(self) -> list[Callable[[], Any]]:
        return [partial(self.module, **call) for call in self.calls]

    def linears(self) -> dict[str, nn.Linear]:
        return {
            name: one
            for name, one in self.module.named_modules()
            if type(one) is nn.Linear and _MODULATION not in name and "emb" not in name
        }

    def prune_(self) -> None:
        for linear in self.linears().values():
            prune_two_of_four_(linear.weight.data)

    def make_default_(self) -> None:
        """torch's 2:4 tensors in the place of the weights."""
        for linear in self.linears().values():
            sparse = default_two_of_four(linear.weight.data)
            linear.weight = nn.Parameter(sparse, requires_grad=False)

    def make_searched_(self) -> None:
        tokens = self._tokens()
        for name, linear in self.linears().items():
            if name in tokens:
                self.module.set_submodule(name, Searched(linear, tokens[name]))

    def _tokens(self) -> dict[str, int]:
        found: dict[str, int] = {}

        def watch(name: str) -> Any:
            def see(_: nn.Module, given: tuple[Tensor, ...]) -> None:
                found[name] = given[0].numel() // given[0].shape[-1]

            return see

        hooks = [one.register_forward_pre_hook(watch(name)) for name, one in self.linears().items()]
        self.module(**self.calls[0])
        for hook in hooks:
            hook.remove()
        return found


def double_block(sizes: Sizes, device: str, share: float = 0.0) -> Built:
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    with torch.device(device):
        block = FluxTransformerBlock(sizes.width, sizes.heads, sizes.head)
        inner, neurons = _shrunk(sizes, share)
        attention = block.attn
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            setattr(attention, name, nn.Linear(sizes.width, inner))
        attention.to_out[0] = nn.Linear(inner, sizes.width)
        attention.to_add_out = nn.Linear(inner, sizes.width)
        attention.heads, attention.inner_dim = inner // sizes.head, inner
        for one in (block.ff, block.ff_context):
            one.net[0].proj = nn.Linear(sizes.width, neurons)
            one.net[2] = nn.Linear(neurons, sizes.width)
    return Built(block, _calls(sizes, device))


def single_block(sizes: Sizes, device: str, share: float = 0.0) -> Built:
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

    with torch.device(device):
        block = FluxSingleTransformerBlock(sizes.width, sizes.heads, sizes.head)
        inner, neurons = _shrunk(sizes, share)
        for name in ("to_q", "to_k", "to_v"):
            setattr(block.attn, name, nn.Linear(sizes.width, inner))
        block.attn.heads, block.attn.inner_dim = inner // sizes.head, inner
        block.proj_mlp = nn.Linear(sizes.width, neurons)
        block.proj_out = nn.Linear(inner + neurons, sizes.width)
    return Built(block, _calls(sizes, device))


def _shrunk(sizes: Sizes, share: float) -> tuple[int, int]:
    """The width of all heads and the number of neurons, by whole heads and by 128."""
    step = 128 if sizes.neurons > 1024 else 64
    heads = max(1, round(sizes.heads * (1 - share)))
    return heads * sizes.head, round(sizes.neurons * (1 - share) / step) * step


def _calls(sizes: Sizes, device: str) -> list[dict[str, Any]]:
    draw = partial(torch.randn, device=device, dtype=DTYPE)
    total = sizes.image_tokens + sizes.text_tokens
    angles = torch.rand(total, sizes.head, device=device) * 6
    return [
        {
            "hidden_states": draw(1, sizes.image_tokens, sizes.width),
            "encoder_hidden_states": draw(1, sizes.text_tokens, sizes.width),
            "temb": draw(1, sizes.width),
            "image_rotary_emb": (angles.cos(), angles.sin()),
        }
        for _ in range(_NUM_INPUTS)
    ]


def dit_xl(sizes: Sizes, device: str, share: float = 0.0) -> Built:
    """DiT-XL/2 at 512², two rows; a tiny one for tiny sizes."""
    from diffusers import DiTTransformer2DModel

    is_tiny, batch = sizes == TINY, 2
    shape = (
        {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2, "sample_size": 8}
        if is_tiny
        else {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28,
              "sample_size": 64}
    )  # fmt: skip
    with torch.device(device):
        model = DiTTransformer2DModel(in_channels=4, out_channels=8, patch_size=2, **shape)
    side = shape["sample_size"]
    calls = [
        {
            "hidden_states": torch.randn(batch, 4, side, side, device=device, dtype=DTYPE),
            "timestep": torch.full((batch,), 500, device=device),
            "class_labels": torch.arange(batch, device=device),
            "return_dict": False,
        }
        for _ in range(_NUM_INPUTS)
    ]
    return Built(model, calls)


MAKERS = {"double": double_block, "single": single_block, "DiT-XL/2": dit_xl}
FORMS = ("dense", "default", "searched", "sparsify_")


@torch.no_grad()
def measure(
    what: str, form: str, share: float, is_compiled: bool, sizes: Sizes, device: str
) -> dict[str, Any]:
    """The row of one module in one form: milliseconds, memory, error against dense with zeros."""
    free()
    torch.manual_seed(0)
    if is_compiled:
        torch._dynamo.reset()
    built = MAKERS[what](sizes, device, share)
    found: dict[str, Any] = {"what": what, "form": form, "share": share, "compiled": is_compiled}
    if form != "dense":
        if not device.startswith("cuda"):
            raise RefusedError(f"2:4 runs on CUDA devices only, this is {device}")
        built.prune_()
        expected = built.output()
        found |= _change_(built, form)
        found["error"] = relative_error(built.output(), expected)
        del expected
    if is_compiled:
        found["compile_s"] = _compile_(built, device)
    free()
    is_cuda = device.startswith("cuda")
    found["weights_mb"] = torch.cuda.memory_allocated() / 1e6 if is_cuda else None
    built.module(**built.calls[0])
    found["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6 if is_cuda else None
    works = {"": built.works()}
    return found | {
        "ms": medians(works, device, hides_host=False)[""],
        "device_ms": medians(works, device, hides_host=True)[""],
    }


def _change_(built: Built, form: str) -> dict[str, Any]:
    if form == "default":
        built.make_default_()
    elif form == "searched":
        built.make_searched_()
    else:
        return _sparsify_(built)
    return {}


def _sparsify_(built: Built) -> dict[str, Any]:
    """The package's own swap."""
    from ditprune.runtime import sparsify_

    decisions: dict[str, Any] = {}

    def swap() -> None:
        decisions.update(sparsify_(built.module, built.calls[0], backend="semi-structured"))

    took_s = seconds(swap, "cuda")
    stayed = sorted({one.reason for one in decisions.values() if one.reason})
    swapped = sum(one.is_swapped for one in decisions.values())
    return {"swapped": swapped, "of": len(decisions), "stayed": stayed[:6], "swap_s": took_s}


def _compile_(built: Built, device: str) -> float:
    """Compile the blocks of a denoiser, or the block itself, in place; seconds of the first run."""
    blocks = getattr(built.module, "transformer_blocks", None)
    backend = "inductor" if device.startswith("cuda") else "eager"  # a dry run compiles nothing
    for one in [built.module] if blocks is None else blocks:
        one.compile(backend=backend)
    return seconds(lambda: built.module(**built.calls[0]), device)


def run(log: Log, clock: Clock, device: str, is_tiny: bool, is_compiled: bool) -> None:
    """The rows of a stage, in the order of their value."""
    sizes, stage = TINY if is_tiny else Sizes(), COMPILED if is_compiled else EAGER
    forms = [("dense", 0.0), ("searched", 0.0), ("default", 0.0)]
    if is_compiled:
        asked = [("double", *forms[0]), ("double", *forms[1]), ("DiT-XL/2", *forms[0])]
        asked += [("DiT-XL/2", *forms[1]), ("single", *forms[0]), ("single", *forms[1])]
        asked += [("double", *forms[2]), ("double", "dense", 0.5), ("double", "searched", 0.5)]
    else:
        shrunk = [(form, share) for form in ("dense", "searched") for share in (0.3, 0.5)]
        asked = [(what, *one) for one in [*forms, *shrunk] for what in ("double", "single")]
        asked += [("DiT-XL/2", *one) for one in forms]
        asked += [("double", "sparsify_", 0.0), ("DiT-XL/2", "sparsify_", 0.0)]
    for what, form, share in asked:
        name = f"{what} {form}" + (f" shrunk {share:.0%}" if share else "")
        work = partial(measure, what, form, share, is_compiled, sizes, device)
        log.row(stage, name, work, min(_ROW_S[stage], clock.left_s))
