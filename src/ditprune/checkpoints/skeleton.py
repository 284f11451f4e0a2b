"""The module tree of a denoiser folder, on the meta device: shapes and names, no weights."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from ditprune.errors import ModelError, did_you_mean
from ditprune.writing.json_file import read_json
from ditprune.writing.output import is_compact

# Far above any model; a module takes memory even without weights, so more would be built for ever.
_MOST_LAYERS = 1_000
_COUNTS_LAYERS = re.compile("layers|blocks|depth")


def skeleton(folder: Path, takes_compact: bool = False) -> nn.Module:
    """Build the class that config.json names, from the installed diffusers only.

    Nothing in the folder is executed: an unknown class is refused. Raises ModelError.

    Args:
        takes_compact: whether compact weights will do, as they do for what only runs the model.
    """
    import diffusers

    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    known = [n for n in dir(diffusers) if "Transformer" in n or n.endswith("Model")]
    if not isinstance(name, str) or name not in known:
        raise ModelError(
            f"{folder / 'config.json'}: class {name!r} is no denoiser of diffusers "
            f"{diffusers.__version__}; {did_you_mean(str(name), known)}"
        )
    if is_compact(folder) and takes_compact:
        config.pop("quantization_config", None)
    else:
        check_dense(folder)
    if "quantization_config" in config:
        raise ModelError(f"{folder}: the weights are quantised; prune the unquantised checkpoint")
    for key, value in config.items():
        if _COUNTS_LAYERS.search(key) and isinstance(value, int) and value > _MOST_LAYERS:
            raise ModelError(
                f"{folder / 'config.json'}: {key} is {value}, expected at most {_MOST_LAYERS}"
            )
    try:
        with torch.device("meta"):
            return getattr(diffusers, name).from_config(config)
    except Exception as error:  # a class raises what it likes for values it does not know
        raise ModelError(
            f"{folder / 'config.json'}: {name} cannot be built from it ({error!r}); "
            "expected the config that save_pretrained wrote"
        ) from None


def check_dense(folder: Path) -> None:
    """Refuse a denoiser whose weights `convert` has packed. Raises ModelError."""
    if is_compact(folder):
        raise ModelError(
            f"{folder}: its weights are compact; convert it first: "
            "`ditprune convert FOLDER --to dense -o DENSE`"
        )
