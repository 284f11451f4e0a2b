"""How was the judge of the test beds trained, and how do I train it again?

    python examples/train_judge.py --out runs/judge --device cuda

Trains `testbeds.reader.Reader` on pictures that `testbeds.drawing` draws, spoilt as a diffusion
model may spoil them, and writes `judge.safetensors`. Stop it at any time and run the same command
again: it goes on from the last hundred steps. Scenes of both splits teach the judge, so that it
reads combinations that a model has never seen as well as any other.

The weights beside `testbeds/reader.py` come of 1100 such steps, but for two changes on the way:
until step 400 all scenes came as `scene` gives them and all objects' pixels weighed 3, and the
learning rate was to reach zero at first by step 600, then by 800, then by 1100. The default of
1500 steps in one go has not been run. `python bench/judging.py` says how well the judge reads.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbeds.drawing import draw, mix
from testbeds.reader import NUM_COLOURS, NUM_LABELS, NUM_SHAPES, Reader
from testbeds.scenes import COLOURS, SHAPES, SPLITS, Scene, scene

FIRST_INDEX = 10_000_000  # the pictures of models and of tests have smaller numbers
EVERY = 100  # steps between two saved states


def labels(scenes: list[Scene]) -> Tensor:
    """Tell which coloured shapes each scene holds: [N, L] of 0 and 1."""
    found = torch.zeros(len(scenes), NUM_LABELS)
    for row, one in zip(found, scenes, strict=True):
        for group in one.groups:
            row[COLOURS.index(group.colour) * len(SHAPES) + SHAPES.index(group.shape)] = 1
    return found


def move(image_N3HW: Tensor, maps_N2HW: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror, shift, scale and turn a little; the maps go along."""
    number, device = len(image_N3HW), image_N3HW.device
    chance = torch.rand(5, number, device=device)
    angle, zoom = (chance[0] - 0.5) * 0.2, 1 + (chance[1] - 0.5) * 0.3
    mirror = torch.where(chance[2] < 0.5, -1.0, 1.0)
    shift = (chance[3:5] - 0.5) * 0.3
    rows = [angle.cos() * zoom * mirror, -angle.sin() * zoom, shift[0]]
    rows += [angle.sin() * zoom * mirror, angle.cos() * zoom, shift[1]]
    turn_N23 = torch.stack(rows, 1).unflatten(1, (2, 3))
    grid = functional.affine_grid(turn_N23, list(image_N3HW.shape), align_corners=False)
    moved = functional.grid_sample(
        image_N3HW, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    shown = functional.grid_sample(
        maps_N2HW.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return moved, shown.long()


def spoil(image_N3HW: Tensor) -> Tensor:
    """Blur, smear and add noise, each as much as chance wants."""
    number, device = len(image_N3HW), image_N3HW.device
    much = torch.rand(6, number, 1, 1, 1, device=device) ** 2
    steps = torch.arange(-2, 3, device=device)
    kernel = torch.exp(-(steps**2) / (2 * 0.9**2))
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).expand(3, 1, 5, 5)
    padded = functional.pad(image_N3HW, (2, 2, 2, 2), mode="replicate")
    image = torch.lerp(image_N3HW, functional.conv2d(padded, kernel, groups=3), much[0])
    small = functional.avg_pool2d(image, 2)
    smear = functional.interpolate(small, scale_factor=2.0, mode="bilinear")
    image = torch.lerp(image, smear, much[1] * 0.9)
    for size, strength in ((64, 0.06), (32, 0.05), (16, 0.05), (4, 0.04)):
        noise = torch.randn(number, 3, size, size, device=device)
        noise = functional.interpolate(noise, scale_factor=64.0 / size, mode="bilinear")
        image = image + noise * strength * torch.rand(number, 1, 1, 1, device=device) ** 2
    return image.clamp(0, 1)


def drawn(index: int) -> Scene:
    """Give a scene to learn from; in half of them, one object is inside the other: it is hard."""
    if index % 2:
        return scene(index, SPLITS[index // 2 % 2])
    tries = (scene(mix(index, attempt), SPLITS[index // 2 % 2]) for attempt in count())
    return next(one for one in tries if one.relation == "inside")


def weights(maps_N2HW: Tensor) -> Tensor:
    """Weigh pixels so that small objects count about as much as large ones: [N, H, W]."""
    looks = (maps_N2HW[:, 0] * NUM_SHAPES + maps_N2HW[:, 1]).flatten(1)
    ones = torch.ones_like(looks, dtype=torch.float32)
    areas = torch.zeros(len(looks), NUM_COLOURS * NUM_SHAPES, device=looks.device)
    areas = areas.scatter_add(1, looks, ones).gather(1, looks)
    return (400 / areas).clamp(1, 8).view_as(maps_N2HW[:, 0])


def batch(step: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the batch of a step: images [N, 3, H, W], maps [N, 2, H, W], labels [N, L]."""
    torch.manual_seed(step)
    indices = [FIRST_INDEX + step * size + i for i in range(size)]
    scenes = [drawn(index) for index in indices]
    image, colours, shapes = draw(scenes, indices, device)
    moved, maps = move(image.float() / 255, torch.stack([colours, shapes], 1))
    return spoil(moved), maps, labels(scenes).to(device)


def loss(reader: Reader, step: int, size: int, device: str) -> Tensor:
    """Compare what the reader says of a batch with what was drawn."""
    images, maps, present = batch(step, size, device)
    colours, shapes, said = reader(images)
    weight = weights(maps)
    pixels = sum(
        (functional.cross_entropy(logits, maps[:, i], reduction="none") * weight).mean()
        for i, logits in enumerate((colours, shapes))
    )
    return pixels + functional.binary_cross_entropy_with_logits(said, present)


def train(out: Path, steps: int, size: int, device: str) -> None:
    """Train, or go on training, and write the weights."""
    torch.manual_seed(0)
    reader = Reader().to(device)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3),
    )
    parts, state = (reader, optimizer, schedule), out / "state.pt"
    first = 0
    if state.exists():
        first, *saved = torch.load(state, map_location=device, weights_only=True)
        for part, values in zip(parts, saved, strict=True):
            part.load_state_dict(values)
    started = time.perf_counter()
    for step in range(first, steps):
        optimizer.zero_grad()
        value = loss(reader.train(), step, size, device)
        value.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            torch.save([step + 1, *(part.state_dict() for part in parts)], out / "state.new")
            (out / "state.new").replace(state)
            spent = time.perf_counter() - started
            print(f"step {step + 1}/{steps}  loss {value.item():.4f}  {spent:.0f} s", flush=True)
    half = {n: v.half() if v.is_floating_point() else v for n, v in reader.state_dict().items()}
    save_file({n: v.cpu().contiguous() for n, v in half.items()}, out / "judge.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/judge"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(options.out, options.steps, options.batch, options.device)


if __name__ == "__main__":
    main()
