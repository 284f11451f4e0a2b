"""Drawn images on the disk: what a stopped evaluation finds again, and what it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.checkpoints.locate import locate
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError
from ditprune.evaluation.compare import compare as evaluate
from ditprune.evaluation.drawing import Images, images_key, load_now
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint

SMALL = Protocol(10, num_inference_steps=2, guidance_scale=1.5, num_held_out=4, batch_size=4)


def fill(images: Images) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(
        0, 256, (images.num_images, 1, 4, 4), generator=generator, dtype=torch.uint8
    )
    for items in images.ranges:
        images.write(items, drawn[items.start : items.stop], 0.5 * len(items))
    return drawn


def test_what_is_written_is_read(tmp_path) -> None:
    images = Images(tmp_path / "key", 10, 4)
    assert images.ranges == [range(4), range(4, 8), range(8, 10)]
    assert not images.has(range(4))
    drawn = fill(images)
    assert all(images.has(items) for items in images.ranges)
    whole = torch.cat([images.read(items) for items in images.ranges])
    assert torch.equal(whole, drawn)
    assert torch.equal(images.take([9, 0, 5]), drawn[[9, 0, 5]])
    assert len(list((tmp_path / "key").iterdir())) == 3


def test_more_images_begin_with_the_same_batches(tmp_path) -> None:
    fill(Images(tmp_path, 10, 4))
    more = Images(tmp_path, 14, 4)
    assert [more.has(items) for items in more.ranges] == [True, True, False, False]


def test_what_was_not_finite_is_counted(tmp_path) -> None:
    images = Images(tmp_path, 10, 4)
    fill(images)
    assert images.num_spoiled() == 0
    images.write(range(4, 8), images.read(range(4, 8)), 1.0, num_spoiled=3)
    images.write(range(8, 10), images.read(range(8, 10)), 1.0, num_spoiled=2)
    assert images.num_spoiled() == 5


def test_seconds_and_the_load_they_were_measured_under_are_kept(tmp_path) -> None:
    images = Images(tmp_path, 14, 4)
    batch = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    for items, seconds in zip(images.ranges, (40.0, 4.0, 8.0, 1.0), strict=True):
        images.write(items, batch[: len(items)], seconds, num_processes=3)
    timing = images.timing()
    assert timing.seconds_per_image == 1.5
    (load,) = timing.loads
    assert load.startswith("processes: 3, threads: ")
    assert load_now(3)["machine"] in load
    assert replace(images, num_images=4).timing().seconds_per_image == 10.0
    images.write(images.ranges[1], batch, 4.0)
    assert images.timing().loads == (load, load.replace("processes: 3", "processes: 1"))


def test_a_batch_that_is_cut_off_is_refused(tmp_path) -> None:
    images = Images(tmp_path, 4, 4)
    fill(images)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ModelError, match="remove it and start again"):
        images.read(range(4))


def test_the_key_tells_apart_what_changes_a_sample(own_pipeline, tiny_pipeline) -> None:
    dense, pruned = locate(str(own_pipeline)), locate(str(tiny_pipeline / "transformer"))
    place, all_ = Placement(), [0, 1, 2, 3]
    key = images_key(dense, None, SMALL, place, all_)
    assert key == images_key(
        dense, None, replace(SMALL, num_images=99, num_held_out=9), place, all_
    )
    others = [
        images_key(dense, None, replace(SMALL, seed=1), place, all_),
        images_key(dense, None, replace(SMALL, num_inference_steps=3), place, all_),
        images_key(dense, None, SMALL, place, [1]),
        images_key(dense, None, SMALL, place, ["0", "1", "2", "3"]),
        images_key(dense, None, replace(SMALL, batch_size=5), place, all_),
        images_key(dense, None, SMALL, Placement(dtype=torch.bfloat16), all_),
        images_key(dense, pruned, SMALL, place, all_),
    ]
    file = own_pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))  # another decoder
    others.append(images_key(dense, None, SMALL, place, all_))
    assert len({key, *others}) == len(others) + 1


@pytest.fixture(scope="module")
def pruned(tiny_pipeline, tiny_stats, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("store") / "pruned"
    prune_checkpoint(locate(str(tiny_pipeline)), out, {"any": tiny_stats}, build(sparsity=0.6))
    return out


def test_images_of_fewer_than_all_labels_serve_their_own_number_only(
    tiny_pipeline, pruned, tmp_path
) -> None:
    """Of four labels: image 1 of two is of label 2, and of three it is of label 1."""
    kept, model = Measures(("ssim",), images=tmp_path / "kept"), locate(str(tiny_pipeline))

    def conditions(num_images: int) -> list[int]:
        protocol = replace(SMALL, num_images=num_images, batch_size=1, num_inference_steps=1)
        found = evaluate(model, [("p", locate(str(pruned)))], tmp_path / "e", protocol,
                         measures=kept)  # fmt: skip
        return sorted(one["condition"] for one in found["gallery"])

    assert (conditions(2), conditions(3)) == ([0, 2], [0, 1, 2])
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert (conditions(4), conditions(5)) == ([0, 1, 2, 3], [0, 0, 1, 2, 3])
    assert len(list((tmp_path / "kept").iterdir())) == 3


class Stop(BaseException):
    """What Ctrl-C is."""


def run(dense: Path, pruned: Path, out: Path, stop_at: str = "", **options: Any) -> list[str]:
    """What was drawn, as `model: images`; stopped when the report says `stop_at`."""
    heard: list[str] = []

    def progress(what: str, done: int, _total: int) -> None:
        if what.startswith("images"):
            heard.append(f"{what.removeprefix('images: ')}: {done}")
        if heard and heard[-1] == stop_at:
            raise Stop

    try:
        evaluate(locate(str(dense)), [("p", locate(str(pruned)))], out, SMALL, progress, **options)
    except Stop:
        heard.append("stopped")
    return heard


def results_of(out: Path) -> str:
    results = json.loads((out / "results.json").read_text())
    for row in results["models"]:
        del row["accounting"]["seconds_per_image"], row["accounting"]["peak_memory_bytes"]
    del results["command"]
    return json.dumps(results)


def test_a_stopped_evaluation_goes_on(tiny_pipeline, pruned, tmp_path) -> None:
    dense = ["dense: 4", "dense: 8", "dense: 10"]
    own = ["p: 4", "p: 8", "p: 10"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(tiny_pipeline, pruned, whole) == dense + own
    assert run(tiny_pipeline, pruned, parts, "dense: 8") == [*dense[:2], "stopped"]
    assert not (parts / "results.json").exists()
    assert run(tiny_pipeline, pruned, parts, "p: 4") == [dense[2], own[0], "stopped"]
    assert run(tiny_pipeline, pruned, parts) == own[1:]
    assert results_of(parts) == results_of(whole)
    assert (parts / "grid.png").read_bytes() == (whole / "grid.png").read_bytes()


def test_dense_images_serve_again_and_pruned_ones_are_not_kept(
    tiny_pipeline, pruned, tmp_path
) -> None:
    kept = Measures(images=tmp_path / "kept")
    first = run(tiny_pipeline, pruned, tmp_path / "a", measures=kept)
    assert len(first) == 6
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert run(tiny_pipeline, pruned, tmp_path / "b", measures=kept) == first[3:]
    assert results_of(tmp_path / "a") == results_of(tmp_path / "b")
    assert not (tmp_path / "b" / ".images").exists()
