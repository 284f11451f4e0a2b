"""Claim: `obs` and `admm` take at most 1.3× the time of the same mathematics in plain torch calls.

    python bench/reconstruction.py [--shapes 1152x4608 3072x12288] [--num-steps 30]

Each row times one layer, 2:4 and 50 % per channel, on a given mask and with the method's own, and
compares with a function below that does the same sums with nothing around them: no normalisation,
no check of the promise, no exact counts. Alternating runs in one process; the fastest of each, in
seconds of the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ditprune.method.reconstruction.admm import ADMM, solve_on_support
from ditprune.method.reconstruction.layer import Choice
from ditprune.method.reconstruction.obs import OBS

Mask = Tensor | Choice
BLOCK = 128


def largest(scores: Tensor, choose: Choice, share: float = 1.0) -> Tensor:
    """A mask by `torch.kthvalue`, ties and exact counts left to luck."""
    groups = scores.reshape(-1, choose.group_size)
    num_remove = round(share * (choose.group_size - choose.num_keep))
    if num_remove == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return (groups > groups.kthvalue(num_remove, dim=1, keepdim=True).values).view(scores.shape)


def plain_obs(weight: Tensor, mask: Mask, gram: Tensor) -> Tensor:
    """SparseGPT as published: the loop over columns in blocks, rows as they lie."""
    num_in, weight = len(gram), weight.clone()
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(num_in)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    diagonal = factor.diagonal()
    keep = mask if isinstance(mask, Tensor) else torch.ones_like(weight, dtype=torch.bool)
    for a in range(0, num_in, BLOCK):
        b = min(a + BLOCK, num_in)
        part, errors = weight[:, a:b].clone(), torch.zeros(len(weight), b - a)
        if isinstance(mask, Choice) and mask.group_size > BLOCK:
            scores = (part / diagonal[a:b]).square()
            keep[:, a:b] = largest(scores, Choice(b - a, (b - a) // 2))
        for i in range(b - a):
            if isinstance(mask, Choice) and mask.group_size <= BLOCK and i % mask.group_size == 0:
                j = i + mask.group_size
                scores = (part[:, i:j] / diagonal[a + i : a + j]).square()
                keep[:, a + i : a + j] = largest(scores, mask)
            column = part[:, i].clone()
            part[:, i] = column * keep[:, a + i]
            errors[:, i] = (column - part[:, i]) / diagonal[a + i]
            part[:, i + 1 :] -= errors[:, i : i + 1] * factor[a + i, a + i + 1 : b]
        weight[:, a:b] = part
        weight[:, b:] -= errors @ factor[a:b, b:]
    return weight


def plain_admm(weight: Tensor, mask: Mask, gram: Tensor, num_steps: int) -> Tensor:
    """Boža's iteration, its mask rising on the first half, and the same solution at the end."""
    inverse = torch.linalg.inv(gram + torch.eye(len(gram)))
    target = weight @ gram
    free, dual, ramp = weight, torch.zeros_like(weight), max(1, num_steps // 2)
    keep = mask if isinstance(mask, Tensor) else torch.ones_like(weight, dtype=torch.bool)
    for step in range(num_steps):
        both = free + dual
        if isinstance(mask, Choice) and step < ramp:
            keep = largest(both.abs(), mask, 1 - (1 - (step + 1) / ramp) ** 3)
        kept = both * keep
        dual = both - kept
        free = (target + kept - dual) @ inverse
    return solve_on_support((free + dual) * keep, target, gram, keep, num_steps // 3)


def seconds(work: Callable[[], Any]) -> float:
    """Of the processor, so that other work on the machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(ours: Callable[[], Any], plain: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """The fastest of each, in turns."""
    both = [(seconds(ours), seconds(plain)) for _ in range(repeats)]
    return min(a for a, _ in both), min(b for _, b in both)


def layer(num_out: int, num_in: int) -> tuple[Tensor, Tensor]:
    """A weight and the Gram of inputs of norm one that go together."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * num_in, num_in, generator=generator)
    inputs += torch.randn(2 * num_in, 1, generator=generator)
    inputs /= inputs.square().sum(0).sqrt()
    weight = torch.randn(num_out, num_in, generator=generator) * 0.02
    return weight, inputs.T @ inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["1152x4608", "3072x12288"])
    parser.add_argument("--num-steps", type=int, default=30, help="of ADMM, fewer to save time")
    parser.add_argument("--masks", nargs="+", default=["given", "2:4", "channel"])
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    steps = args.num_steps
    admm = ADMM(num_steps=steps, num_ramp_steps=max(1, steps // 2), num_support_steps=steps // 3)
    console = Console(highlight=False, soft_wrap=True)
    for shape in args.shapes:
        num_out, num_in = map(int, shape.split("x"))
        weight, gram = layer(num_out, num_in)
        choices: dict[str, Mask] = {
            "given": torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5,
            "2:4": Choice(4, 2),
            "channel": Choice(num_in, num_in // 2),
        }
        for name, mask in ((name, choices[name]) for name in args.masks):
            for method, ours, plain in (
                ("obs", OBS(BLOCK), plain_obs),
                (f"admm, {steps} steps", admm, partial(plain_admm, num_steps=steps)),
            ):
                arguments = (weight, mask, gram)
                own, reference = compare(
                    partial(ours, *arguments), partial(plain, *arguments), args.repeats
                )
                console.print(
                    f"{shape:12} {method:15} {name:8} plain {reference:7.2f} s  ours {own:7.2f} s  "
                    f"{own / reference:.2f}×"
                )
    console.print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
