"""Adapters as PEFT and diffusers attach them, and weights that are no plain tensors; copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Lora(nn.Module):
    """The structure of PEFT's `lora.Linear`: a base layer, and two lists of Linears by adapter."""

    def __init__(self, base_layer: nn.Module, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base_layer
        num_out, num_in = base_layer.weight.shape[:2]
        self.lora_A = nn.ModuleDict({"default": nn.Linear(num_in, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, num_out, bias=False)})

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    @torch.no_grad()
    def merge_(self) -> nn.Module:
        """What `fuse_lora` and `unload_lora_weights` do."""
        delta = self.lora_B["default"].weight @ self.lora_A["default"].weight
        self.base_layer.weight.data += delta
        return self.base_layer


class Rotated(nn.Module):
    """The structure of a tuner that computes with the weight (OFT, LoHa)."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.oft_r = nn.Parameter(torch.eye(base_layer.in_features))

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.base_layer.weight @ self.oft_r, self.base_layer.bias)


class IPAdapterAttnProcessor(nn.Module):
    """The weights that an IP-Adapter adds to an attention of diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.to_k_ip = nn.ModuleList([nn.Linear(32, 32)])
        self.to_v_ip = nn.ModuleList([nn.Linear(32, 32)])


class Packed(Tensor):
    """As optimum-quanto's: each operation works on a dequantised copy."""

    codes: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor) -> Packed:
        packed = Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)
        packed.codes = (127 * weight / weight.abs().max()).round().to(torch.int8)
        packed.scale = weight.abs().max() / 127
        return packed

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is torch.ops.aten.detach.default:
            return args[0]
        dense = pytree.tree_map_only(cls, lambda p: p.codes.float() * p.scale, args)
        return op(*dense, **(kwargs or {}))


def wrap_all(denoiser: nn.Module, wrapper: Any = Lora, leaf: str = "attn.qkv") -> list[str]:
    """Wrap this layer of each block; return the names."""
    names = [name for name, _ in denoiser.named_modules() if name.endswith(leaf)]
    for name in names:
        denoiser.set_submodule(name, wrapper(denoiser.get_submodule(name)))
    return names
