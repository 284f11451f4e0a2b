"""From a dense folder to a compact one and back, tensor by tensor, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from ditprune.checkpoints import manifest
from ditprune.checkpoints.compact.compact_folder import (
    CompactWeights,
    packed_layout,
    write_compact_manifest,
)
from ditprune.checkpoints.compact.head import ITEM_BYTES, Head
from ditprune.checkpoints.compact.packing import pack_weight, smallest
from ditprune.checkpoints.copy_folder import copy_other_files, other_files, stamp
from ditprune.checkpoints.layout import Layout, layout_of
from ditprune.checkpoints.locate import ModelFolder, check_inside
from ditprune.checkpoints.rewrite_tensors import Change, Record, accept, rewrite
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Entry, Weights
from ditprune.errors import ModelError
from ditprune.progress import Progress, silent
from ditprune.targets.discover import discover
from ditprune.writing import identity as guard
from ditprune.writing.output import MANIFEST, is_compact
from ditprune.writing.staging import check_early, resumable_folder

_Records = Mapping[str, Record]  # by tensor


@dataclass(frozen=True)
class Converted:
    """What became of a denoiser.

    Args:
        heads: every target by its tensor's name, in its smallest form.
        packed: the targets whose smallest form is smaller than the dense one.
        dense_bytes, size_bytes: of all its shards, dense and as they are in the compact folder.
    """

    heads: Mapping[str, Head]
    packed: frozenset[str]
    dense_bytes: int
    size_bytes: int

    @property
    def packed_bytes(self) -> int:
        """Of the packed targets."""
        return sum(self.heads[name].size_bytes for name in self.packed)

    @property
    def unpacked_bytes(self) -> int:
        """Of the packed targets as they were."""
        return sum(self.heads[name].dense_bytes for name in self.packed)


@dataclass(frozen=True)
class _Part:
    """One denoiser on its way.

    Args:
        place: its folder, from the root of the model.
        source: what is read.
        layout: what is written.
        change, check: as `rewrite` takes them.
        finish: writes what stands beside the shards.
    """

    name: str
    place: Path
    source: Weights
    layout: Layout
    change: Change
    check: Callable[[Record], None]
    finish: Callable[[Path, _Records], None]


def to_compact(
    model: ModelFolder, out: Path, overwrite: bool = False, progress: Progress = silent
) -> dict[str, Converted]:
    """Write a folder whose sparse weights are packed; it loads where ditprune is imported.

    A weight that would not be smaller stays dense; so does a whole denoiser without one that is.
    `out` appears whole or not at all, and a killed run goes on.

    Raises:
        ModelError: nothing gains, the model is compact already, or it cannot be read.
        OutputError: `out` cannot be written.
    """
    for folder in model.denoisers.values():
        if is_compact(folder):
            raise ModelError(f"{folder}: is compact already; nothing to convert")
    check_early(out, model.root, overwrite)
    weights = {name: Weights(folder) for name, folder in model.denoisers.items()}
    heads = {name: _heads(one, model.denoisers[name], progress) for name, one in weights.items()}
    gains = {name: {n: h for n, h in one.items() if _gains(h)} for name, one in heads.items()}
    if not any(gains.values()):
        raise ModelError(f"{model.name}: {_no_gain(heads)}")
    parts = [
        _compacting(name, model, weights[name], gains[name])
        if gains[name] else _copying(name, model, weights[name])
        for name in weights
    ]  # fmt: skip
    _convert(model, parts, out, "compact", overwrite, progress)
    return {
        part.name: Converted(
            heads[part.name], frozenset(gains[part.name]),
            part.source.size_bytes, part.layout.size_bytes,
        )
        for part in parts
    }  # fmt: skip


def to_dense(
    model: ModelFolder, out: Path, overwrite: bool = False, progress: Progress = silent
) -> dict[str, Converted]:
    """Write the folder that `to_compact` was given, the same bytes in the same shards.

    Every tensor's hashes are compared. `out` appears whole or not at all, and a killed run goes on.

    Raises:
        ModelError: the model is not compact, or not what `to_compact` wrote.
        OutputError: `out` cannot be written.
    """
    if not any(is_compact(folder) for folder in model.denoisers.values()):
        raise ModelError(f"{model.name}: is not compact; nothing to convert")
    check_early(out, model.root, overwrite)
    parts = [
        _unpacking(name, model, CompactWeights(folder))
        if is_compact(folder) else _copying(name, model, Weights(folder))
        for name, folder in model.denoisers.items()
    ]  # fmt: skip
    _convert(model, parts, out, "dense", overwrite, progress)
    return {
        part.name: Converted({}, frozenset(), part.layout.size_bytes, part.source.size_bytes)
        for part in parts
    }


def _heads(weights: Weights, folder: Path, progress: Progress) -> dict[str, Head]:
    """The smallest form of every target."""
    targets = discover(skeleton(folder), auxiliary=True)
    names = [f"{name}.weight" for name in targets]
    entries = [weights.entries[name] for name in names if name in weights.entries]
    heads = {}
    for number, entry in enumerate(entries, start=1):
        if entry.dtype in ITEM_BYTES:
            heads[entry.name] = smallest(weights.raw(entry), entry.dtype, entry.shape)
        progress("counting zeros", number, len(entries))
    return heads


def _gains(head: Head) -> bool:
    return head.size_bytes < head.dense_bytes


def _no_gain(heads: Mapping[str, Mapping[str, Head]]) -> str:
    every = {name: head for one in heads.values() for name, head in one.items()}
    if not every:
        return "none of its targets is stored as floating point; nothing to pack"
    name, best = min(every.items(), key=lambda item: item[1].size_bytes / item[1].dense_bytes)
    return (
        f"none of its {len(every)} targets is sparse enough to be smaller packed (the sparsest, "
        f"{name}, would take {best.size_bytes / best.dense_bytes:.3f} of its bytes); prune it first"
    )


def _compacting(name: str, model: ModelFolder, dense: Weights, heads: Mapping[str, Head]) -> _Part:
    def change(entry: Entry, raw: memoryview) -> tuple[memoryview, None]:
        return (pack_weight(raw, heads[entry.name]) if entry.name in heads else raw), None

    def finish(folder: Path, records: _Records) -> None:
        hashes = {n: (one["sha256"], one["source_sha256"]) for n, one in records.items()}
        write_compact_manifest(folder, dense, heads, hashes)

    place = model.denoisers[name].relative_to(model.root)
    return _Part(name, place, dense, packed_layout(dense, heads), change, accept, finish)


def _unpacking(name: str, model: ModelFolder, compact: CompactWeights) -> _Part:
    def change(entry: Entry, raw: memoryview) -> tuple[memoryview, None]:
        return compact.dense(entry.name, raw), None

    def check(record: Record) -> None:
        compact.check(record["tensor"], record["source_sha256"], record["sha256"])

    def finish(folder: Path, _records: _Records) -> None:
        (folder / "config.json").write_bytes(compact.config)

    place = model.denoisers[name].relative_to(model.root)
    return _Part(name, place, compact.packed, compact.layout, change, check, finish)


def _copying(name: str, model: ModelFolder, weights: Weights) -> _Part:
    place = model.denoisers[name].relative_to(model.root)
    return _Part(
        name, place, weights, layout_of(weights),
        lambda _entry, raw: (raw, None), accept, lambda _folder, _records: None,
    )  # fmt: skip


def _convert(
    model: ModelFolder, parts: list[_Part], out: Path, to: str, overwrite: bool, progress: Progress
) -> None:
    weights = {part.name: part.source for part in parts}
    manifests = {part.name: model.root / part.place / MANIFEST for part in parts}
    for file in manifests.values():
        check_inside(file, model.root)
    others = sum(file.stat().st_size for file in other_files(model, weights))
    size_bytes = others + sum(part.layout.size_bytes for part in parts)
    run = {
        "versions": manifest.versions(),
        "convert to": to,
        "files": stamp(model, weights),
        "json": guard.config_hash(model.root),
    }
    with resumable_folder(out, model.root, size_bytes, run, overwrite) as staging:
        if staging.is_written:
            return
        copy_other_files(model, weights, staging.part)
        for part in parts:
            folder = staging.part / part.place
            records = rewrite(
                part.name, part.source, part.layout, folder, staging.journal,
                part.change, progress, part.check,
            )  # fmt: skip
            if manifests[part.name].is_file():
                copyfile(manifests[part.name], folder / MANIFEST)
            part.finish(folder, records)
