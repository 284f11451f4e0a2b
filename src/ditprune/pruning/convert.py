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
from ditprune.checkpoints.copy_folder import (
    check_unchanged,
    copy_identity,
    copy_other_files,
    other_files,
)
from ditprune.checkpoints.locate import ModelFolder, check_inside
from ditprune.checkpoints.rewrite_tensors import Record, TensorRewriter
from ditprune.checkpoints.skeleton import globs_in_manifest, skeleton
from ditprune.checkpoints.weights import Layout, Weights, layout_of
from ditprune.errors import ModelError
from ditprune.progress import Progress, silent
from ditprune.reporting import card
from ditprune.targets.discover import discover
from ditprune.writing.files import MANIFEST, is_compact
from ditprune.writing.staging import check_early, resumable_folder

_Write = Callable[[str, TensorRewriter, Path], None]


@dataclass(frozen=True)
class Converted:
    """The sizes of a denoiser before and after.

    Args:
        heads: the smallest form of every target, by the name of its tensor.
        dense_bytes, size_bytes: of all its shards, dense and in the compact folder.
    """

    heads: Mapping[str, Head]
    dense_bytes: int
    size_bytes: int

    @property
    def packed(self) -> dict[str, Head]:
        """The targets whose smallest form is smaller than the dense one."""
        return {name: head for name, head in self.heads.items() if head.is_smaller}

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed targets."""
        return sum(head.size_bytes for head in self.packed.values())

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of the packed targets before packing."""
        return sum(head.dense_bytes for head in self.packed.values())


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
        check_inside(folder / MANIFEST, model.root)
    check_early(out, model.root, overwrite)
    weights = {name: Weights(folder) for name, folder in model.denoisers.items()}
    heads = {n: _heads(shards, model.denoisers[n], progress) for n, shards in weights.items()}
    packed = {
        name: {target: head for target, head in targets.items() if head.is_smaller}
        for name, targets in heads.items()
    }
    if not any(packed.values()):
        raise ModelError(f"{model.name}: {_no_gain(heads)}")
    layouts = {
        name: packed_layout(dense, packed[name]) if packed[name] else layout_of(dense)
        for name, dense in weights.items()
    }

    def write(name: str, rewriter: TensorRewriter, folder: Path) -> None:
        with rewriter:
            for entry, raw in rewriter:
                head = packed[name].get(entry.name)
                rewriter.write(entry, pack_weight(raw, head) if head else raw, source=raw)
        if packed[name]:
            write_compact_manifest(folder, weights[name], packed[name], rewriter.written)

    _convert(model, weights, layouts, write, out, "compact", overwrite, progress)
    return {
        name: Converted(heads[name], weights[name].size_bytes, layouts[name].size_bytes)
        for name in weights
    }


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
    compact = {n: CompactWeights(f) for n, f in model.denoisers.items() if is_compact(f)}
    stored = {
        name: compact[name].packed if name in compact else Weights(folder)
        for name, folder in model.denoisers.items()
    }
    layouts = {
        name: compact[name].layout if name in compact else layout_of(weights)
        for name, weights in stored.items()
    }

    def write(name: str, rewriter: TensorRewriter, folder: Path) -> None:
        source = compact.get(name)

        def check(record: Record) -> None:
            if source:
                source.check(record["tensor"], record["source_sha256"], record["sha256"])

        with rewriter:
            for entry, raw in rewriter:
                dense = source.dense(entry.name, raw) if source else raw
                rewriter.write(entry, dense, source=raw, check=check)
                del dense, raw  # or they would stay in memory while the next are read
        if source:
            (folder / "config.json").write_bytes(source.config)

    _convert(model, stored, layouts, write, out, "dense", overwrite, progress)
    return {
        name: Converted({}, layouts[name].size_bytes, stored[name].size_bytes)
        for name in model.denoisers
    }


def _heads(weights: Weights, folder: Path, progress: Progress) -> dict[str, Head]:
    """The smallest form of every target."""
    targets = discover(skeleton(folder), auxiliary=True, blocks=globs_in_manifest(folder))
    names = [f"{name}.weight" for name in targets]
    entries = [weights.entries[name] for name in names if name in weights.entries]
    heads = {}
    for number, entry in enumerate(entries, start=1):
        if entry.dtype in ITEM_BYTES:
            heads[entry.name] = smallest(weights.raw(entry), entry.dtype, entry.shape)
        progress("counting zeros", number, len(entries))
    return heads


def _no_gain(heads: Mapping[str, Mapping[str, Head]]) -> str:
    every_head = [pair for targets in heads.values() for pair in targets.items()]
    if not every_head:
        return "none of its targets is stored as floating point; nothing to pack"
    name, best = min(every_head, key=lambda pair: pair[1].size_bytes / pair[1].dense_bytes)
    return (
        f"none of its {len(every_head)} targets is sparse enough to be smaller packed "
        f"(the sparsest, {name}, would take {best.size_bytes / best.dense_bytes:.3f} of its "
        "bytes); prune it first"
    )


def _convert(
    model: ModelFolder,
    stored: Mapping[str, Weights],
    layouts: Mapping[str, Layout],
    write: _Write,
    out: Path,
    to: str,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Write every denoiser's tensors from `stored` into `layouts`, and copy all other files."""
    for folder in model.denoisers.values():
        check_inside(folder / MANIFEST, model.root)
    size_bytes = sum(file.stat().st_size for file in other_files(model, stored))
    size_bytes += sum(layout.size_bytes for layout in layouts.values())
    identity = copy_identity(model, stored, {"convert to": to})
    with resumable_folder(out, model.root, size_bytes, identity, overwrite) as staging:
        if staging.is_written:
            return
        copy_other_files(model, stored, staging.part)
        for name, source in model.denoisers.items():
            folder = staging.part / source.relative_to(model.root)
            rewriter = TensorRewriter(
                name, stored[name], layouts[name], folder, staging.journal, progress
            )
            write(name, rewriter, folder)
            if (source / MANIFEST).is_file():
                copyfile(source / MANIFEST, folder / MANIFEST)
        card.write_converted(staging.part)
        check_unchanged(model, stored, identity)
