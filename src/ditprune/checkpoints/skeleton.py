"""What model does a denoiser's folder hold? Its module tree, and the fingerprints of its weights.

The tree is on the meta device: shapes and names, no weights. A fingerprint is a hash per target,
the same whatever the dtype. It covers the name, the shape and three short runs of values as
float32; so a checkpoint stored in half precision and the same one loaded in float32 agree, and a
fine-tune does not. It reads kilobytes per layer, not the model.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.shrunk.build import reshape_as_stored_
from ditprune.checkpoints.shrunk.form import KEY, form_in, is_form
from ditprune.checkpoints.weights import Weights
from ditprune.errors import ModelError, RecipeError, did_you_mean
from ditprune.imports import without_collection
from ditprune.method.choices import as_globs
from ditprune.targets.discover import Target, discover
from ditprune.writing.files import MANIFEST, is_compact, read_manifest
from ditprune.writing.json_file import read_json

# Far above any model; a module takes memory even without weights, so more would be built for ever.
# What a config may count, by the name of the value: a library builds as many at once.
_MOST = {re.compile("layers|blocks|depth"): 1_000, re.compile("^num_train_timesteps$"): 100_000}
_MISSPELT = 0.85  # likeness of names; those of unlike classes have up to 0.8


def skeleton(folder: Path, takes_compact: bool = False) -> nn.Module:
    """Build the class that config.json names, from the installed diffusers only.

    Nothing in the folder is executed: an unknown class is refused. A shrunk denoiser has the sizes
    of its tensors on disk. Raises ModelError.

    Args:
        takes_compact: whether compact weights will do, as they do for what only runs the model.
    """
    with without_collection():
        import diffusers

    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    known = [
        n for n in dir(diffusers)
        if ("Transformer" in n or n.endswith("Model")) and n != "AutoModel"  # of another's class
    ]  # fmt: skip
    if not isinstance(name, str) or name not in known:
        raise ModelError(
            f"{folder / 'config.json'}: class {name!r} is no denoiser of diffusers "
            f"{diffusers.__version__}; {_way_out(str(name), known)}"
        )
    if not takes_compact:
        check_dense(folder)
    if KEY in config and not (is_compact(folder) or is_form(config[KEY])):
        raise ModelError(f"{folder}: the weights are quantised; prune the unquantised checkpoint")
    check_counts(folder / "config.json", config)
    form = form_in(config, str(folder / "config.json"))
    config.pop(KEY, None)
    try:
        with without_collection():
            denoiser_class = getattr(diffusers, name)  # imported here
        with torch.device("meta"):
            denoiser: nn.Module = denoiser_class.from_config(config)
    except Exception as error:  # a class raises what it likes for values it does not know
        raise ModelError(
            f"{folder / 'config.json'}: {name} cannot be built from it ({error!r}); "
            "expected the config that save_pretrained wrote"
        ) from None
    if form is not None:
        entries = open_weights(folder).entries.values()
        reshape_as_stored_(denoiser, form, entries, str(folder))
    return denoiser


def num_parameters(folder: Path, weights: Weights) -> int:
    """Of a denoiser's folder without its buffers; all tensors where its class is not diffusers'."""
    try:
        tree = skeleton(folder, takes_compact=True)
    except ModelError:
        return weights.num_parameters
    return sum(parameter.numel() for parameter in tree.parameters())


def check_counts(file: Path, config: Any, name: str = "") -> None:
    """Refuse a config that counts more than any model has. Raises ModelError."""
    parts = config.items() if isinstance(config, Mapping) else ((name, part) for part in config)
    for key, part in parts:
        if key == KEY:  # ranks of layers, of blocks; nothing is built from it before it is checked
            continue
        for pattern, most in _MOST.items():
            if pattern.search(key) and isinstance(part, (int, float)) and part > most:
                raise ModelError(f"{file}: {key} is {part}, expected at most {most}")
        if isinstance(part, (Mapping, list)):
            check_counts(file, part, key)


def _way_out(name: str, known: Collection[str]) -> str:
    """A clause for a misspelt class, or for one of somebody's own."""
    if any(difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELT)):
        return did_you_mean(name, known)
    return (
        "load a class of your own in Python and prune it there: ditprune.calibrate(denoiser, "
        "calls), then ditprune.prune_(denoiser, stats)"
    )


def globs_in_manifest(folder: Path) -> tuple[str, ...]:
    """Where the blocks of a pruned denoiser are, as its manifest says; empty if it does not.

    Raises ModelError for a manifest that cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        return ()
    recipe = read_manifest(folder).get("recipe")
    try:
        return as_globs("blocks", recipe.get("blocks", ()) if isinstance(recipe, Mapping) else ())
    except RecipeError as error:
        raise ModelError(f"{folder / MANIFEST}: {error}; run `ditprune verify`") from None


def check_dense(folder: Path) -> None:
    """Refuse a denoiser whose weights `convert` has packed. Raises ModelError."""
    if is_compact(folder):
        raise ModelError(
            f"{folder}: its weights are compact; convert it first: "
            "`ditprune convert FOLDER --to dense -o DENSE`"
        )


_RUN = 1024  # values in each of the three runs
_DIGITS = 32  # hexadecimal, 128 bits


def _fingerprints(
    targets: Iterable[Target], read_slice: Callable[[str, int, int], Tensor]
) -> dict[str, str]:
    fingerprints = {}
    for target in targets:
        digest = hashlib.sha256(f"{target.name} {target.shape}\n".encode())
        count = min(_RUN, target.num_weights)
        for start in sorted({0, (target.num_weights - count) // 2, target.num_weights - count}):
            digest.update(read_slice(target.name, start, count).float().numpy().tobytes())
        fingerprints[target.name] = digest.hexdigest()[:_DIGITS]
    return fingerprints


def combined_fingerprint(fingerprints: Mapping[str, str]) -> str:
    """One fingerprint for all targets of a model."""
    lines = "".join(f"{name} {fingerprints[name]}\n" for name in sorted(fingerprints))
    return hashlib.sha256(lines.encode()).hexdigest()[:_DIGITS]


def module_fingerprints(denoiser: nn.Module, targets: Iterable[Target]) -> dict[str, str]:
    """The fingerprints of a loaded denoiser's targets."""

    def read_slice(name: str, start: int, count: int) -> Tensor:
        flat = denoiser.get_parameter(f"{name}.weight").detach().reshape(-1)
        return flat[start : start + count].cpu()

    return _fingerprints(targets, read_slice)


def weights_print(denoiser: nn.Module, targets: Iterable[Target]) -> dict[str, str]:
    """The dtype and the fingerprint of each target of a loaded denoiser, as one text."""
    targets = list(targets)
    prints = module_fingerprints(denoiser, targets)
    dtypes = {t.name: denoiser.get_parameter(f"{t.name}.weight").dtype for t in targets}
    return {name: f"{dtypes[name]} {prints[name]}" for name in prints}


def weight_fingerprints(weights: Weights, targets: Iterable[Target]) -> dict[str, str]:
    """The fingerprints of a checkpoint's targets on disk."""
    return _fingerprints(
        targets, lambda name, start, count: weights.read_slice(f"{name}.weight", start, count)
    )


def folder_fingerprints(folder: Path, blocks: Sequence[str] = ()) -> dict[str, str]:
    """The fingerprints of all targets in a denoiser's folder, dense or compact.

    `blocks` are as for `discover`.
    """
    targets = discover(skeleton(folder, takes_compact=True), auxiliary=True, blocks=blocks)
    return weight_fingerprints(open_weights(folder), targets.values())
