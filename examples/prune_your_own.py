"""How do I prune a denoiser that is no pipeline, or not from diffusers at all?

Any module with transformer blocks will do: give `calibrate` the arguments its forward takes.

    python examples/prune_your_own.py
"""

import copy

import torch
from torch import Tensor, nn

import ditprune


class Block(nn.Module):
    """A DiT block as in the original code: fused qkv, adaLN modulation."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition)[
            :, None
        ].chunk(6, dim=-1)
        normed = nn.functional.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale_a) + shift_a
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.attn["qkv"](normed).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + gate_a * self.attn["proj"](mixed)
        normed = nn.functional.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale_m) + shift_m
        return tokens + gate_m * self.mlp(normed)


class MyDiT(nn.Module):
    """Your own denoiser: tokens [N, T, 16] and a timestep [N] in, predicted noise out."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(16, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width, num_heads=4) for _ in range(depth))
        self.final = nn.Linear(width, 16)

    def forward(self, tokens: Tensor, timestep: Tensor) -> Tensor:
        hidden, condition = self.embed(tokens), self.time(timestep[:, None])
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.final(hidden)


def main() -> None:
    torch.manual_seed(0)
    denoiser = MyDiT()
    batches = [{"tokens": torch.randn(8, 32, 16), "timestep": torch.rand(8)} for _ in range(16)]

    stats = ditprune.calibrate(denoiser, batches)
    plan = ditprune.inspect(denoiser, stats, include="blocks.0.*")
    for name, target in plan.targets.items():
        group = f"G_out {target.g_out:.3f} → {target.granularity}"
        print(f"{name:28} {target.shape!s:12} {target.role:11} {group}")

    held_out = {"tokens": torch.randn(8, 32, 16), "timestep": torch.rand(8)}
    with torch.no_grad():
        dense = denoiser(**held_out)
        for saliency in ("magnitude", "wanda", "stw"):
            pruned = copy.deepcopy(denoiser)
            outcome = ditprune.prune_(pruned, stats, sparsity=0.5, saliency=saliency)
            error = (pruned(**held_out) - dense).square().mean() / dense.square().mean()
            print(f"{saliency:9} removed {outcome.sparsity:.1%}, relative error {error:.4f}")


if __name__ == "__main__":
    main()
