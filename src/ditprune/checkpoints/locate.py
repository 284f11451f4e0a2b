"""What the user called MODEL: a pipeline folder, a bare denoiser folder, a hub id, or `bundled`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditprune import bundled
from ditprune.calls import DENOISER
from ditprune.errors import ModelError, reason_of
from ditprune.writing.json_file import read_json
from ditprune.writing.paths import path_of

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SINGLE_FILES = {".safetensors", ".gguf", ".ckpt"}  # a whole model in one file
# Data only: configuration, safetensors weights, tokenizers, the card. No pickles, no code.
# No weights at the root either, where a pipeline's repository keeps other formats of the same.
_HUB_FILES = [
    "*.json", "*/*.safetensors", "diffusion_pytorch_model*.safetensors", "*.txt", "*.model",
    "*.md", "LICENSE*",
]  # fmt: skip


# A component of diffusers is a denoiser by its class's name, as in `skeleton`; these, which the
# same test would let pass, stand beside one.
_DENOISER = re.compile(r"Transformer|Model$")
_BESIDE = re.compile(r"VQ|ControlNet|Projection|Decoder|OnnxRuntime")
# A name of Python, since the pipeline's class takes it as an argument.
_COMPONENT = re.compile(r"[A-Za-z_]\w{0,99}")


@dataclass(frozen=True)
class ModelFolder:
    """Where a model lies.

    Args:
        name: as the user wrote it.
        root: the folder that a pruned copy mirrors.
        denoisers: the folders with a denoiser's config.json and weights, by component in the
            order of model_index.json; only `root` itself when there is no pipeline around it.
    """

    name: str
    root: Path
    denoisers: Mapping[str, Path]

    @property
    def denoiser(self) -> Path:
        """The first denoiser's folder."""
        return next(iter(self.denoisers.values()))

    @property
    def is_pipeline(self) -> bool:
        return self.root != self.denoiser

    @property
    def hub_id(self) -> str | None:
        """Its name on the hub, where it came from there."""
        return self.name if _is_hub_id(self.name) and not Path(self.name).is_dir() else None


def locate(model: str) -> ModelFolder:
    """Find MODEL. Raises ModelError, saying what was looked for."""
    root = _root(model)
    if (root / "model_index.json").is_file():
        return ModelFolder(model, root, _denoisers(model, root))
    if (root / "config.json").is_file():
        return ModelFolder(model, root, {DENOISER: root})
    single = next((f.name for f in sorted(root.iterdir()) if f.suffix in _SINGLE_FILES), None)
    hint = (
        f"; load {single} with `from_single_file(...)`, then `.save_pretrained(FOLDER)`"
        if single else "; pass a folder written by save_pretrained"
    )  # fmt: skip
    raise ModelError(
        f"{model}: neither model_index.json (a pipeline) nor config.json (a denoiser) in the "
        f"folder{hint}"
    )


def check_inside(file: Path, folder: Path) -> None:
    """Refuse a file that is a link out of its model. Raises ModelError.

    In the hub's cache a snapshot's files are links into the `blobs` folder of the same model.
    """
    real, home = file.resolve(), folder.resolve()
    blobs = [p.parent / "blobs" for p in home.parents if p.name == "snapshots"]
    if not any(real.is_relative_to(folder) for folder in (home, *blobs)):
        raise ModelError(f"{file}: links to {real}, outside the model; copy it in")


def _root(model: str) -> Path:
    if model == "bundled":
        return bundled.PIPELINE
    path = path_of(model, ModelError)
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(
            f"{model}: is a file; expected a folder: load it with the pipeline's or the "
            "denoiser's `from_single_file(...)`, then `.save_pretrained(FOLDER)`"
        )
    if _is_hub_id(model):
        return _download(model)
    raise ModelError(f"{model}: no such folder; expected a model folder, a hub id or 'bundled'")


def _is_hub_id(model: str) -> bool:
    return bool(_HUB_ID.fullmatch(model)) and not model.startswith(".")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise ModelError(
            f"{hub_id}: no such folder here, and the hub did not give it ({reason_of(error)}); "
            "check the name, the connection, or download it first"
        ) from None


def _denoisers(model: str, root: Path) -> dict[str, Path]:
    """The components of a pipeline that are denoisers, in the order of its index."""
    index = read_json(root / "model_index.json")
    _check_names(root / "model_index.json", index)
    denoisers = {
        name: root / name for name, entry in index.items() if _is_denoiser(root / name, entry)
    }
    if denoisers:
        return denoisers
    components = ", ".join(k for k in index if not k.startswith("_")) or "none"
    raise ModelError(
        f"{model}: the pipeline has no '{DENOISER}' folder, nor another denoiser of diffusers "
        f"(components: {components}); pass the denoiser's own folder"
    )


def _check_names(file: Path, index: Mapping[str, Any]) -> None:
    """Refuse components that are not folders of the model. Raises ModelError."""
    for name, entry in index.items():
        if isinstance(entry, list) and not _COMPONENT.fullmatch(name):
            raise ModelError(
                f"{file}: names the component {name[:60]!r}; expected the plain name of a folder"
            )


def _is_denoiser(folder: Path, entry: object) -> bool:
    """By the class of config.json, or of the index where the config cannot tell."""
    match entry:
        case [str(library), str(name)] if library.split(".")[0] == "diffusers":
            pass
        case _:
            return False
    if not folder.is_dir():
        return False
    try:
        given = read_json(folder / "config.json").get("_class_name")
    except ModelError:
        given = None  # the skeleton tells what is wrong with it
    return names_denoiser(given if isinstance(given, str) else name)


def names_denoiser(name: str) -> bool:
    """Whether a class of diffusers with this name is a denoiser."""
    return bool(_DENOISER.search(name)) and not _BESIDE.search(name)
