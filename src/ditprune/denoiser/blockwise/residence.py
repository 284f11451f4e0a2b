"""Where are the weights of a denoiser's blocks while others run? In memory, or on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.offload import dtypes_of, without_weights
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.quiet import quiet


class Residence(Protocol):
    """Where the weights of blocks are."""

    def resident(self, path: str) -> AbstractContextManager[nn.Module]:
        """A block whose weights are there while the `with` block runs."""

    def running(self) -> AbstractContextManager[object]:
        """The whole denoiser can be called while the `with` block runs."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A denoiser that is loaded whole."""

    denoiser: nn.Module

    def resident(self, path: str) -> AbstractContextManager[nn.Module]:
        return nullcontext(self.denoiser.get_submodule(path))

    def running(self) -> AbstractContextManager[object]:
        return nullcontext()


class OnDisk:
    """A denoiser of a folder whose blocks are read when they are needed, and dropped after.

    The rest of it (embeddings, the last layers) is loaded once. Where a forward calls a layer of a
    block outside of it, as DiT's does with the first block's embedding, the layer is read for it.

    Raises ModelError where a weight is missing.
    """

    def __init__(self, folder: Path, blocks: Sequence[str], placement: Placement) -> None:
        self._weights, self._device = Weights(folder), placement.device
        self.denoiser = without_weights(folder, self._weights, placement)
        self._blocks = tuple(blocks)
        self._dtypes = dtypes_of(self.denoiser, placement.dtype)
        away = tuple(f"{path}." for path in blocks)
        names = [name for name, _ in self.denoiser.named_parameters()]
        self._load([name for name in names if not name.startswith(away)])
        with quiet():
            for buffer in self.denoiser.buffers():
                buffer.data = buffer.data.to(self._device)
        for path in blocks:
            for name, layer in self.denoiser.get_submodule(path).named_modules(prefix=path):
                if layer._parameters:
                    self._read_when_called(name, layer)

    @contextmanager
    def resident(self, path: str) -> Iterator[nn.Module]:
        block = self.denoiser.get_submodule(path)
        away = dict(block.named_parameters())
        self._load([f"{path}.{name}" for name in away])
        try:
            yield block
        finally:
            self._set({f"{path}.{name}": parameter for name, parameter in away.items()})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Each block is read as its forward begins, and dropped as it ends."""
        opened: dict[str, Any] = {}

        def enter(path: str, *_: Any) -> None:
            opened[path] = self.resident(path)
            opened[path].__enter__()

        def leave(path: str, *_: Any) -> None:
            opened.pop(path).__exit__(None, None, None)

        with ExitStack() as stack:
            for path in self._blocks:
                block = self.denoiser.get_submodule(path)
                for handle in (
                    block.register_forward_pre_hook(partial(enter, path)),
                    block.register_forward_hook(partial(leave, path), always_call=True),
                ):
                    stack.callback(handle.remove)
            yield

    def _read_when_called(self, name: str, layer: nn.Module) -> None:
        before: list[dict[str, nn.Parameter]] = []

        def enter(*_: Any) -> None:
            away = {f"{name}.{leaf}": p for leaf, p in layer.named_parameters(recurse=False)}
            is_away = any(weight.is_meta for weight in away.values())
            before.append(away if is_away else {})
            self._load(list(before[-1]))

        def leave(*_: Any) -> None:
            self._set(before.pop())

        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave, always_call=True)

    def _load(self, names: Sequence[str]) -> None:
        def read(name: str) -> nn.Parameter:
            weight = self._weights.read(name).to(self._device, self._dtypes[name], copy=True)
            return nn.Parameter(weight, requires_grad=False)

        self._set({name: read(name) for name in names})

    def _set(self, parameters: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            owner, _, leaf = name.rpartition(".")
            self.denoiser.get_submodule(owner)._parameters[leaf] = parameter  # type: ignore[assignment]
