"""What a model costs: counted on the disk, and shared among its denoisers."""

from __future__ import annotations

from pathlib import Path

import torch

from ditprune.checkpoints.locate import locate
from ditprune.evaluation.accounting import Macs, Stock, account, take_stock, work_of
from folders import edit_tensors, shards_of, tensors_on_disk


def test_zeros_are_counted_on_the_disk(own_pipeline) -> None:
    name = "transformer_blocks.0.attn1.to_q"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{name}.weight"].view(-1)[:300] = 0
        tensors["transformer_blocks.0.attn1.to_k.bias"].zero_()

    edit_tensors(shards_of(own_pipeline / "transformer")[0], change)
    model = locate(str(own_pipeline))
    stock = take_stock(model, {"transformer": [name]})
    tensors = tensors_on_disk(own_pipeline / "transformer").values()
    assert stock.num_parameters == sum(t.numel() for t in tensors)
    assert stock.num_nonzero == sum(int((t != 0).sum()) for t in tensors)
    size = sum(file.stat().st_size for file in shards_of(Path(own_pipeline) / "transformer"))
    assert stock.size_bytes == size
    assert stock.zeros == {"transformer": {name: (300, 1024)}}
    assert stock.sparsity == 300 / 1024
    assert stock.shares("transformer") == {name: 300 / 1024}


def test_denoisers_share_the_steps_as_their_calls_do() -> None:
    first, second = Macs(100, {"a": 60}), Macs(200, {"b": 50})
    # Of 40 rows 30 went to the first; the workers saw different parts.
    counted = [{"high": (10, first)}, {"high": (20, first), "low": (10, second)}]
    work = work_of(counted, rows_per_step=2, num_steps=8)
    assert work.per_image() == 12 * 100 + 4 * 200
    stock = Stock(10, 5, 40, {"high": {"a": (1, 2)}, "low": {"b": (1, 1)}})
    assert work.per_image(stock) == 12 * (100 - 30) + 4 * (200 - 50)
    assert account(stock, work, 1.5) == {
        "num_parameters": 10, "num_nonzero": 5, "size_bytes": 40, "macs_per_step": 250,
        "macs_per_step_effective": 180, "macs_per_image": 2000, "macs_per_image_effective": 1440,
        "seconds_per_image": 1.5, "peak_memory_bytes": None,
    }  # fmt: skip


def test_what_was_not_counted_is_none() -> None:
    known = account(Stock(1, 1, 4, {}), None, None)
    for key in ("macs_per_step", "macs_per_image_effective", "seconds_per_image"):
        assert known[key] is None
