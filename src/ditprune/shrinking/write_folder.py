"""How are the tensors of a smaller denoiser written? Shard by shard, as the denoiser's own."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ditprune.checkpoints.rewrite_tensors import ShardWriter
from ditprune.checkpoints.shrunk.form import KEY, Form
from ditprune.checkpoints.weights import Entry, Layout, Weights, laid_out, read_range, sha256
from ditprune.progress import Progress
from ditprune.writing.files import write_beside
from ditprune.writing.json_file import read_json

_CONFIG = "config.json"


def smaller_layout(weights: Weights, new: Mapping[str, Entry], gone: Collection[str]) -> Layout:
    """Where each tensor goes: a new one in the place of its own, or of the layer's weight.

    Args:
        new: tensors by name, wherever they lie now.
        gone: names of tensors that are left out.
    """

    def in_shard(shard: Path) -> list[Entry]:
        return [
            replace(new.get(name, entry), file=shard)
            for entry in weights.in_shard(shard)
            for name, entry in _in_place_of(entry, new, gone)
        ]

    return laid_out(weights, in_shard)


def _in_place_of(
    entry: Entry, new: Mapping[str, Entry], gone: Collection[str]
) -> Iterator[tuple[str, Entry]]:
    """A tensor by its name, or those that take its place."""
    layer, _, leaf = entry.name.rpartition(".")
    if entry.name not in gone:
        yield entry.name, entry
    elif leaf == "weight":
        names = (f"{layer}.{part}" for part in ("down.weight", "up.weight", "up.bias"))
        yield from ((name, new[name]) for name in names if name in new)


def write_tensors(
    weights: Weights, new: Mapping[str, Entry], layout: Layout, folder: Path, progress: Progress
) -> dict[str, str]:
    """Write every tensor; returns the hash of each."""
    hashes: dict[str, str] = {}
    with ShardWriter(layout, folder) as writer:
        for entry in layout.in_order():
            source = new.get(entry.name) or weights.entries[entry.name]
            raw = read_range(source.file, source.offset, source.size_bytes)
            writer.write(entry, raw)
            hashes[entry.name] = sha256(raw)
            progress("writing tensors", len(hashes), len(layout.entries))
        writer.sync()
    for index in folder.glob("*.safetensors.index*.json"):
        content = read_json(index)
        content["weight_map"] = {entry.name: entry.file.name for entry in layout.in_order()}
        content["metadata"] = {"total_size": sum(e.size_bytes for e in layout.entries.values())}
        _write_json(index, content)
    return hashes


def write_form(folder: Path, form: Form) -> None:
    """Say in config.json what a denoiser has become."""
    content = read_json(folder / _CONFIG)
    _write_json(folder / _CONFIG, {**content, KEY: form.to_dict()})


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    with write_beside(file) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
