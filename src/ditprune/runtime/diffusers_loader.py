"""How does diffusers load a compact folder? Through a quantizer that unpacks its weights.

config.json names ditprune as quantization method, and `ditprune.diffusers_hook` adds it to the
methods that diffusers knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditprune.checkpoints.compact.compact_folder import FORMAT, METHOD, QUANT_METHOD, check_head
from ditprune.checkpoints.compact.head import read_head, seems_packed
from ditprune.checkpoints.compact.packing import unpack_weight
from ditprune.checkpoints.shrunk.form import Form
from ditprune.checkpoints.weights import DTYPES, Entry, read_header, read_range
from ditprune.errors import ModelError
from ditprune.runtime.shrunk_loader import derived_classes, resize_as_stored_

_NAMES = ("DitpruneConfig", "DitpruneQuantizer")


class _Method(StrEnum):
    """The method's name as an enum, because diffusers reads its `value`."""

    DITPRUNE = METHOD


def add_to(tables: ModuleType) -> None:
    """Add the method to the two tables of `diffusers.quantizers.auto`, and to their merging."""
    config, quantizer = _classes()
    for name in (METHOD, QUANT_METHOD):
        tables.AUTO_QUANTIZATION_CONFIG_MAPPING[name] = config
    tables.AUTO_QUANTIZER_MAPPING[METHOD] = quantizer
    merge = tables.DiffusersAutoQuantizer.merge_quantization_configs

    def merge_quantization_configs(stored: Any, given: Any) -> Any:
        """As diffusers merges them, which leaves out what was given with no more than a warning."""
        method = stored.get("quant_method") if isinstance(stored, Mapping) else None
        is_ours = isinstance(stored, _Config) or method in (METHOD, QUANT_METHOD)
        if is_ours and given is not None and not isinstance(given, _Config):
            raise ModelError(
                "quantization_config: the folder is compact, and its weights would stay dense; "
                "`ditprune convert FOLDER --to dense -o DENSE` first, and quantise that"
            )
        return merge(stored, given)

    tables.DiffusersAutoQuantizer.merge_quantization_configs = staticmethod(
        merge_quantization_configs
    )


@cache
def _classes() -> tuple[type, type]:
    """The configuration and the quantizer, as subclasses of those of diffusers."""
    return derived_classes(__name__, _NAMES, _Config, _Unpacker)


def __getattr__(name: str) -> type:
    """The two classes by name, by which pickle finds them: a loaded model holds one of each."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _classes()[_NAMES.index(name)]


class _Config:
    """The value of `quantization_config` in config.json."""

    def __init__(
        self, quant_method: str = METHOD, format: int = FORMAT, shrunk: Any = None,  # noqa: A002
    ) -> None:  # fmt: skip
        if format != FORMAT:
            raise ModelError(
                f"config.json: compact format {format}, this ditprune reads {FORMAT}; install the "
                "version that wrote it"
            )
        self.quant_method = _Method.DITPRUNE
        self.format = format
        self.shrunk = shrunk

    def __repr__(self) -> str:
        return f"{type(self).__name__}(format={self.format})"


def _unpacked(entry: Entry) -> Entry:
    """The place of a weight with the shape that it has when it is unpacked."""
    if entry.dtype != "U8" or len(entry.shape) != 1:
        return entry
    raw = np.memmap(entry.file, np.uint8, "r", entry.offset, entry.shape).data
    is_packed = seems_packed(raw)
    return replace(entry, shape=read_head(raw, entry.name).shape) if is_packed else entry


class _Unpacker:
    """Gives diffusers one dense weight after the other, so that it loads an ordinary model."""

    use_keep_in_fp32_modules = True  # as for dense models
    is_serializable = True
    is_trainable = True
    is_compileable = True
    supports_parallel_loading = False  # so that only one unpacked layer is held beside the model
    pre_quantized: bool
    quantization_config: Any

    def __init__(self, config: Any, **options: Any) -> None:
        super().__init__(config, **options)  # type: ignore[call-arg]  # of DiffusersQuantizer
        self._entries: dict[str, Entry] = {}
        self._in_float32: frozenset[str] = frozenset()
        self._done: set[str] = set()

    def validate_environment(self, *_: Any, **options: Any) -> None:
        """Refuse quantizing while loading, and offloading to disk, which skips unpacking."""
        if not self.pre_quantized:
            raise ModelError(
                f"{METHOD}: packs folders, not models that are being loaded; leave "
                "quantization_config out, and `ditprune convert FOLDER --to compact -o OUT`"
            )
        device_map = options.get("device_map")
        if isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise ModelError(
                "device_map: compact weights cannot be offloaded to disk; "
                "`ditprune convert FOLDER --to dense -o DENSE` first"
            )

    def update_torch_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        """The default dtype for None; without one diffusers would convert the packed bytes too."""
        return torch.get_default_dtype() if dtype is None else dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], files: Any) -> list[str]:
        """Read where the packed weights are stored."""
        self._entries = {e.name: e for file in files for e in read_header(Path(file))}
        return loaded_keys

    def check_if_quantized_param(
        self, model: nn.Module, value: Tensor, name: str, *_: Any, **__: Any
    ) -> bool:
        """Whether a tensor is packed: a run of bytes where the model has a matrix."""
        if value.dtype != torch.uint8 or value.ndim != 1:
            return False
        return dict(model.named_parameters())[name].ndim > 1

    def create_quantized_param(
        self, model: nn.Module, value: Tensor, name: str, device: Any, *_: Any,
        dtype: torch.dtype | None = None, **__: Any,
    ) -> None:  # fmt: skip
        """Put the dense weight into the model.

        Its bytes are read from the file again: the tensor that diffusers holds is memory-mapped,
        and the pages that are read from it would stay in memory beside the model.
        """
        from accelerate.utils import set_module_tensor_to_device

        before, entry = model.get_parameter(name), self._entries.get(name)
        if entry is None:
            raw, where = value.numpy().data, name
        else:
            raw = read_range(entry.file, entry.offset, entry.size_bytes)
            where = f"{entry.file}: {name}"
        head, dense = unpack_weight(raw, where)
        check_head(head, head.dtype, tuple(before.shape), where)
        weight = torch.frombuffer(dense, dtype=DTYPES[head.dtype]).reshape(head.shape)
        if not self._in_float32.isdisjoint(name.split(".")):
            dtype = torch.float32
        weight = weight.to(dtype or before.dtype)
        set_module_tensor_to_device(model, name, device, value=weight, dtype=weight.dtype)
        self._done.add(name)

    def get_cuda_warm_up_factor(self) -> int:
        return 2  # as for dense models

    def preprocess_model(self, model: nn.Module, **options: Any) -> nn.Module:
        """Remember the modules that stay in float32; the model is not marked as quantized."""
        self._in_float32 = frozenset(options.get("keep_in_fp32_modules") or ())
        if self.quantization_config.shrunk is not None:
            form = Form.from_config(self.quantization_config.shrunk)
            resize_as_stored_(model, form, [*map(_unpacked, self._entries.values())])
        return model

    _process_model_before_weight_loading = preprocess_model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> nn.Module:
        """Remove `quantization_config`, so that saving the model writes an ordinary folder."""
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        missing = [
            e for e in self._entries.values()
            if e.name not in self._done and e.shape != shapes.get(e.name, e.shape)
        ]  # fmt: skip
        if missing:
            raise ModelError(
                f"{missing[0].file}: {len(missing)} packed weights were not loaded (first "
                f"{missing[0].name}); leave ignore_mismatched_sizes out"
            )
        config = {k: v for k, v in model.config.items() if k != "quantization_config"}
        model._internal_dict = type(model.config)(config)
        self._entries, self._done = {}, set()  # the model keeps this object, but needs no files
        return model

    def _dequantize(self, model: nn.Module) -> nn.Module:
        return model
