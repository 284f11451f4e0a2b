"""How does diffusers load a shrunk folder? Through a quantizer that resizes layers beforehand.

config.json names a method of ours, and `ditprune.diffusers_hook` adds it to those that diffusers
knows. A `quantization_config` of the caller's is handed on: its own quantizer then sees the layers
as they are in the shrunk model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ditprune.checkpoints.shrunk.build import reshape_as_stored_
from ditprune.checkpoints.shrunk.form import (
    KEY,
    MARK,
    METHOD,
    QUANT_METHOD,
    Form,
    is_form,
    marked_form,
)
from ditprune.checkpoints.weights import Entry, read_header
from ditprune.errors import ModelError

_NAMES = ("DitpruneShrunkConfig", "DitpruneShrunkQuantizer")


class _Method(StrEnum):
    """The method's name as an enum, because diffusers reads its `value`."""

    SHRUNK = METHOD


def add_shrunk(tables: ModuleType) -> None:
    """Add the method to the two tables of `diffusers.quantizers.auto`, and to their merging."""
    config, _ = _classes()
    for name in (METHOD, QUANT_METHOD):
        tables.AUTO_QUANTIZATION_CONFIG_MAPPING[name] = config
    auto = tables.DiffusersAutoQuantizer
    tables.AUTO_QUANTIZER_MAPPING[METHOD] = lambda stored, **options: _quantizer(
        auto.from_config, stored, **options
    )
    merge = auto.merge_quantization_configs

    def merge_quantization_configs(stored: Any, given: Any) -> Any:
        """As diffusers merges them, but what was given is not left out."""
        if not is_form(stored):
            return merge(stored, given)
        merged = auto.from_dict(dict(stored))
        merged.given = given
        return merged

    auto.merge_quantization_configs = staticmethod(merge_quantization_configs)
    _let_save()


def _let_save() -> None:
    """Let diffusers write a form into the config.json of a shrunk model."""
    from diffusers.configuration_utils import ConfigMixin

    to_json_file = ConfigMixin.to_json_file

    def with_form(self: Any, json_file_path: Any) -> None:
        if MARK not in getattr(self, "_internal_dict", {}):
            to_json_file(self, json_file_path)
            return
        form, content = marked_form(self), json.loads(self.to_json_string())
        del content[MARK]
        if form is not None:
            if content.get(KEY) is not None:
                raise _not_saved()
            content[KEY] = form.to_dict()
        text = json.dumps(content, indent=2, sort_keys=True)
        Path(json_file_path).write_text(f"{text}\n", encoding="utf-8")

    ConfigMixin.to_json_file = with_form  # type: ignore[method-assign]


def resize_as_stored_(model: nn.Module, form: Form, entries: Sequence[Entry]) -> None:
    """Make a model that diffusers is about to load as small as its tensors are in the files.

    Raises ModelError.
    """
    if not entries:
        raise ModelError(
            "shrunk folders: this diffusers does not say which files it loads; "
            "`pip install -U 'diffusers>=0.39'`"
        )
    reshape_as_stored_(model, form, entries, str(entries[0].file.parent))


def _not_saved() -> ModelError:
    return ModelError(
        "save_pretrained: a shrunk model that was quantised is not saved; keep the shrunk folder, "
        "and quantise what is loaded from it"
    )


@cache
def _classes() -> tuple[type, type]:
    """The configuration and the quantizer without another, as subclasses of those of diffusers."""
    return derived_classes(__name__, _NAMES, _Config, _Plain)


def derived_classes(
    module: str, names: tuple[str, str], config: type, quantizer: type
) -> tuple[type, type]:
    """A configuration and a quantizer of these names in a module, as subclasses of diffusers'."""
    from diffusers.quantizers.base import DiffusersQuantizer
    from diffusers.quantizers.quantization_config import QuantizationConfigMixin

    here = {"__module__": module}
    return (
        type(names[0], (config, QuantizationConfigMixin), here),
        type(names[1], (quantizer, DiffusersQuantizer), here),
    )


def __getattr__(name: str) -> type:
    """The two classes by name, by which pickle finds them."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _classes()[_NAMES.index(name)]


class _Config:
    """The value of `quantization_config` in config.json, and the one that the caller gave."""

    def __init__(self, **content: Any) -> None:
        self.form = Form.from_config(content)
        self.quant_method = _Method.SHRUNK
        self.given: Any = None

    def to_dict(self) -> dict[str, Any]:
        return self.form.to_dict()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.form})"


class _Plain:
    """Loads weights as diffusers does without a quantizer."""

    use_keep_in_fp32_modules = True
    is_serializable = True
    is_trainable = True
    is_compileable = True

    def update_torch_dtype(self, dtype: torch.dtype | None) -> torch.dtype | None:
        return dtype

    def get_cuda_warm_up_factor(self) -> int:
        return 2  # as for dense models

    def preprocess_model(self, model: nn.Module, **_: Any) -> nn.Module:
        """Leave it: it is not marked as quantized, and casts to any dtype."""
        return model

    _process_model_before_weight_loading = preprocess_model
    _process_model_after_weight_loading = preprocess_model

    def _dequantize(self, model: nn.Module) -> nn.Module:
        return model


def _quantizer(make: Callable[..., Any], stored: Any, pre_quantized: bool = True) -> Any:
    """A quantizer that resizes the layers, and then does what the caller's does, if there is one.

    Args:
        make: makes the caller's quantizer from the configuration that was given.
    """
    if not pre_quantized:
        raise ModelError(
            f"{METHOD}: is the form of a folder, and none that a model takes while it is loaded; "
            "leave quantization_config out, and `ditprune shrink MODEL -o OUT`"
        )
    given = stored.given
    inner = _classes()[1](stored) if given is None else make(given, pre_quantized=False)
    quantizer = _unpickled(type(inner))
    quantizer.__dict__.update(vars(inner), _form=stored.form)
    return quantizer


@cache
def _resizing(quantizer_class: type) -> type:
    """The subclass of a quantizer that resizes the layers first."""
    return type(quantizer_class.__name__, (_Resizing, quantizer_class), {"__module__": __name__})


def _unpickled(quantizer_class: type) -> Any:
    """A quantizer that resizes the layers first, without its state."""
    return object.__new__(_resizing(quantizer_class))


class _Resizing:
    """What is done before the quantizer whose subclass it is in front of."""

    quantization_config: Any
    _form: Form
    _files: Sequence[Path] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self).__mro__[2],), self.__dict__

    @property
    def is_serializable(self) -> bool:
        """Whether it can be saved. Raises ModelError where it was quantized: two methods apply."""
        if not isinstance(self, _Plain):
            raise _not_saved()
        return True

    def maybe_update_loaded_keys(self, loaded_keys: list[str], files: Any) -> list[str]:
        """Remember which files hold the weights."""
        self._files = [Path(file) for file in files]
        return super().maybe_update_loaded_keys(loaded_keys, files)  # type: ignore[misc]

    def preprocess_model(self, model: Any, **options: Any) -> Any:
        """Give the layers their sizes, which stand in the files."""
        entries = [entry for file in self._files for entry in read_header(file)]
        resize_as_stored_(model, self._form, entries)
        self._files = ()  # the model keeps this object, but needs no files
        config = {k: v for k, v in model.config.items() if k != KEY}
        if not isinstance(self, _Plain):
            config[KEY] = self.quantization_config
        model._internal_dict = type(model.config)(config)
        return super().preprocess_model(model, **options)  # type: ignore[misc]
