"""How does a dense folder become a compact one, and back? Tensor by tensor, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from ditprune.checkpoints.compact.compact_folder import (
    CompactWeights,
    packed_layout,
    write_compact_manifest,
)
from ditprune.checkpoints.compact.head import ITEM_BYTES, Head
from ditprune.checkpoints.compact.packing import pack_weight, smallest
from ditprune.checkpoints.copy_folder import copy_identity, copy_other_files, other_files
from ditprune.checkpoints.locate import ModelFolder, check_inside
from ditprune.checkpoints.rewrite_tensors import Record, TensorRewriter
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Entry, Layout, Weights, layout_of
from ditprune.errors import ModelError
from ditprune.progress import Progress, silent
from ditprune.targets.discover import discover
from ditprune.writing.files import MANIFEST, is_compact
from ditprune.writing.staging import check_early, resumable_folder

_Records = Mapping[str, Record]  # by tensor


@dataclass(frozen=True)
class Converted:
    """The sizes of a denoiser before and after.

    Args:
        heads: the smallest form of every target, by the name of its tensor.
        packed: the targets whose smallest form is smaller than the dense one.
        dense_bytes, size_bytes: of all its shards, dense and in the compact folder.
    """

    heads: Mapping[str, Head]
    packed: frozenset[str]
    dense_bytes: int
    size_bytes: int

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed targets."""
        return sum(self.heads[name].size_bytes for name in self.packed)

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of the packed targets before packing."""
        return sum(self.heads[name].dense_bytes for name in self.packed)


@dataclass(frozen=True)
class _Part:
    """How one denoiser is converted; by default its shards are copied.

    Args:
        source: the tensors to read.
        layout: where they go.
        convert: from the bytes of a tensor to those to write.
        check: refuses a tensor's record by raising.
        finish: writes the files beside the shards, from their folder and the records.
    """

    name: str
    source: Weights
    layout: Layout
    convert: Callable[[Entry, memoryview], memoryview] = lambda _entry, raw: raw
    check: Callable[[Record], None] | None = None
    finish: Callable[[Path, _Records], None] = lambda _folder, _records: None


def to_compact(
    model: ModelFolder, out: Path, overwrite: bool = False, progress: Progress = silent
) -> dict[str, Converted]:
    """Write a copy whose sparse weights are packed; it loads where ditprune is imported.

    A weight that would not become smaller stays dense. `out` appears whole or not at all; the same
    call continues a killed run.

    Raises:
        ModelError: nothing becomes smaller, the model is compact already, or it cannot be read.
        OutputError: `out` cannot be written.
    """
    for folder in model.denoisers.values():
        if is_compact(folder):
            raise ModelError(f"{folder}: is compact already; nothing to convert")
    check_early(out, model.root, overwrite)
    weights = {name: Weights(folder) for name, folder in model.denoisers.items()}
    heads = {n: _heads(shards, model.denoisers[n], progress) for n, shards in weights.items()}
    if not any(_gains(head) for targets in heads.values() for head in targets.values()):
        raise ModelError(f"{model.name}: {_no_gain(heads)}")
    parts = [_packing(name, weights[name], heads[name]) for name in weights]
    _convert(model, parts, out, "compact", overwrite, progress)
    return {
        part.name: Converted(
            heads[part.name], frozenset(n for n, head in heads[part.name].items() if _gains(head)),
            part.source.size_bytes, part.layout.size_bytes,
        )
        for part in parts
    }  # fmt: skip


def to_dense(
    model: ModelFolder, out: Path, overwrite: bool = False, progress: Progress = silent
) -> dict[str, Converted]:
    """Write the dense folder again that `to_compact` read, byte for byte.

    The hashes of every tensor are compared. `out` appears whole or not at all; the same call
    continues a killed run.

    Raises:
        ModelError: the model is not compact, or `to_compact` did not write it.
        OutputError: `out` cannot be written.
    """
    if not any(is_compact(folder) for folder in model.denoisers.values()):
        raise ModelError(f"{model.name}: is not compact; nothing to convert")
    check_early(out, model.root, overwrite)
    parts = [
        _unpacking(name, CompactWeights(folder))
        if is_compact(folder)
        else _copying(name, Weights(folder))
        for name, folder in model.denoisers.items()
    ]
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
    every_head = {name: head for targets in heads.values() for name, head in targets.items()}
    if not every_head:
        return "none of its targets is stored as floating point; nothing to pack"
    name, best = min(every_head.items(), key=lambda item: item[1].size_bytes / item[1].dense_bytes)
    return (
        f"none of its {len(every_head)} targets is sparse enough to be smaller packed "
        f"(the sparsest, {name}, would take {best.size_bytes / best.dense_bytes:.3f} of its "
        "bytes); prune it first"
    )


def _packing(name: str, dense: Weights, heads: Mapping[str, Head]) -> _Part:
    """Pack the targets that become smaller; copy a denoiser without any."""
    heads = {target: head for target, head in heads.items() if _gains(head)}

    def convert(entry: Entry, raw: memoryview) -> memoryview:
        return pack_weight(raw, heads[entry.name]) if entry.name in heads else raw

    def finish(folder: Path, records: _Records) -> None:
        hashes = {n: (record["sha256"], record["source_sha256"]) for n, record in records.items()}
        write_compact_manifest(folder, dense, heads, hashes)

    if not heads:
        return _copying(name, dense)
    return _Part(name, dense, packed_layout(dense, heads), convert, finish=finish)


def _unpacking(name: str, compact: CompactWeights) -> _Part:
    def convert(entry: Entry, raw: memoryview) -> memoryview:
        return compact.dense(entry.name, raw)

    def check(record: Record) -> None:
        compact.check(record["tensor"], record["source_sha256"], record["sha256"])

    def finish(folder: Path, _records: _Records) -> None:
        (folder / "config.json").write_bytes(compact.config)

    return _Part(name, compact.packed, compact.layout, convert, check, finish)


def _copying(name: str, weights: Weights) -> _Part:
    return _Part(name, weights, layout_of(weights))


def _convert(
    model: ModelFolder, parts: list[_Part], out: Path, to: str, overwrite: bool, progress: Progress
) -> None:
    weights = {part.name: part.source for part in parts}
    for folder in model.denoisers.values():
        check_inside(folder / MANIFEST, model.root)
    others = sum(file.stat().st_size for file in other_files(model, weights))
    size_bytes = others + sum(part.layout.size_bytes for part in parts)
    identity = copy_identity(model, weights, {"convert to": to})
    with resumable_folder(out, model.root, size_bytes, identity, overwrite) as staging:
        if staging.is_written:
            return
        copy_other_files(model, weights, staging.part)
        for part in parts:
            source = model.denoisers[part.name]
            folder = staging.part / source.relative_to(model.root)
            with TensorRewriter(
                part.name, part.source, part.layout, folder, staging.journal, progress
            ) as rewriter:
                for entry, raw in rewriter:
                    content = part.convert(entry, raw)
                    before = None if content is raw else raw
                    rewriter.write(entry, content, source=before, check=part.check)
            if (source / MANIFEST).is_file():
                copyfile(source / MANIFEST, folder / MANIFEST)
            part.finish(folder, rewriter.written)
