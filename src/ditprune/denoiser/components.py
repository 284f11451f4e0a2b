"""May diffusers see the folder of a pipeline? Only if nothing in it names or holds code.

Everything that the index names is looked up here first: a class of a known kind, from diffusers or
transformers themselves. What these libraries would run from the folder, or fetch, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import check_counts
from ditprune.errors import ModelError
from ditprune.writing.json_file import read_json

_LIBRARIES = ("diffusers", "transformers")
_NEVER_RUN = "code from model folders is never run"
_INDEX = "model_index.json"
_UNPACKED = 2  # diffusers unpacks every value of the index into a library and a class
_LONGEST_NAME = 200  # of a component, which is an argument of the pipeline and a folder
# The kinds of classes that a component can be of, by library.
_KINDS = {
    "diffusers": ("ModelMixin", "SchedulerMixin", "BaseGuidance", "VaeImageProcessor"),
    "transformers": (
        "PreTrainedModel", "PreTrainedTokenizerBase", "FeatureExtractionMixin",
        "ImageProcessingMixin", "ProcessorMixin",
    ),
}  # fmt: skip
_AUTO = "transformers.models.auto."  # classes that choose another by the folder's config
# The files from which transformers learns of classes in the folder, or of kernels to fetch.
_BUILT_FROM = ("config.json", "scheduler_config.json")
_ADAPTER = "adapter_config.json"
_OF_SENTENCEPIECE = ("sentencepiece", "protobuf")  # what reads a *.model of a tokenizer
_CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json",
            "processor_config.json", "video_preprocessor_config.json")  # fmt: skip


def check_components(model: ModelFolder) -> tuple[str, str]:
    """Refuse a pipeline that names or holds code outside diffusers and transformers.

    Returns the class names of the pipeline and of its scheduler. Raises ModelError.
    """
    if not model.is_pipeline:
        raise ModelError(
            f"{model.name}: is a bare denoiser, and sampling needs its pipeline; pass the "
            "pipeline's folder, or a --calibration-set sampled before"
        )
    file = model.root / _INDEX
    index = read_json(file)
    _check_no_module(model.root / "None.py")  # where diffusers looks when no module is named
    _check_pipeline(file, index.get("_class_name"))
    for name, entry in index.items():
        if not (name.isidentifier() and name.isascii() and len(name) < _LONGEST_NAME):
            raise ModelError(f"{file}: {name!r:.60} is no name of a component; {_NEVER_RUN}")
        if name != "_class_name":
            _check_entry(file, name, entry)
    scheduler = index.get("scheduler")
    class_name = scheduler[-1] if isinstance(scheduler, list) else None
    return str(index["_class_name"]), str(class_name)


def _check_pipeline(file: Path, name: object) -> None:
    import diffusers

    named = getattr(diffusers, name, None) if isinstance(name, str) else None
    _check_installed(f"{file}: {name}", named)
    if not (isinstance(named, type) and issubclass(named, diffusers.DiffusionPipeline)):
        raise ModelError(
            f"{file}: pipeline class {name!r} is not in diffusers {diffusers.__version__}; "
            f"{_NEVER_RUN}"
        )


def _check_entry(file: Path, name: str, entry: object) -> None:
    """Refuse a value of the index that is neither a plain setting nor a known component."""
    match entry:
        case [None, None]:
            return
        case [str(library), str(class_name)]:
            _check_component(file, name, library, class_name)
        case list() if entry and not any(isinstance(part, (str, list, dict)) for part in entry):
            if entry[0] is None:
                raise _refused(file, name, entry)
        case list():
            raise _refused(file, name, entry)
        case str() | dict() if len(entry) == _UNPACKED:  # two letters or two keys unpack as well
            library = next(iter(entry))
            if not library.isdecimal():  # as a setting can have, of two labels
                raise _refused(file, name, [*entry])
            _check_no_module(file.parent / name / f"{library}.py")


def _refused(file: Path, name: str, entry: object) -> ModelError:
    library = entry[0] if isinstance(entry, list) and entry else entry
    return ModelError(
        f"{file}: component '{name}' comes from {library!r:.60}, expected one of "
        f"{', '.join(_LIBRARIES)}; {_NEVER_RUN}"
    )


def _check_component(file: Path, name: str, library: str, class_name: str) -> None:
    if library not in _LIBRARIES and not _is_pipelines_own(library):
        raise _refused(file, name, [library])
    named = _class_of(file, name, library, class_name)
    if named is None or not _is_of_a_kind(named):
        raise ModelError(
            f"{file}: component '{name}' is a {class_name!r:.60}, which is no model, scheduler, "
            f"tokenizer or processor of {library}; {_NEVER_RUN}"
        )
    folder = file.parent / name
    _check_no_module(folder / f"{library}.py")
    if (folder / _INDEX).exists():  # nothing would check its own components
        raise ModelError(
            f"{folder / _INDEX}: a component that is a pipeline itself is not loaded; remove the "
            f"file, {_NEVER_RUN}"
        )
    for config in (folder / name for name in _BUILT_FROM):
        if config.exists():
            check_counts(config, read_json(config, as_python=True))
    if library != "diffusers":
        _check_configs(folder, named)
        _check_tokenizer(folder, named)
        if (folder / _ADAPTER).exists():  # transformers would load the model that it names
            raise ModelError(
                f"{folder / _ADAPTER}: an adapter names another model, which is not loaded; merge "
                f"it into the weights, {_NEVER_RUN}"
            )


def _is_pipelines_own(library: str) -> bool:
    """Whether it is a folder of pipelines in diffusers; some bring classes of their own."""
    import diffusers

    folder = Path(diffusers.__file__).parent / "pipelines" / library
    return library.isidentifier() and (folder / "__init__.py").is_file()


def _class_of(file: Path, name: str, library: str, class_name: str) -> type | None:
    """The class; None if there is none. Raises ModelError where packages are missing."""
    place = library if library in _LIBRARIES else f"diffusers.pipelines.{library}"
    try:
        named = getattr(import_module(place), _renamed(library, class_name), None)
    except (ImportError, RuntimeError) as error:
        missing = getattr(error, "name", None) or str(error).splitlines()[0]
        raise _lacks(
            f"{file}: component '{name}' is a {class_name} of {library}", missing
        ) from None
    if not isinstance(named, type):
        return None
    _check_installed(f"{file}: component '{name}' is a {class_name} of {library}", named)
    return named


def _check_installed(what: str, named: object) -> None:
    """Refuse what stands in the place of a class whose packages are missing. Raises ModelError."""
    if isinstance(named, type) and ".dummy_" in named.__module__:
        needed = getattr(named, "_backends", ())
        missing = [package for package in needed if find_spec(package) is None] or needed
        raise _lacks(what, ", ".join(missing))


def _lacks(what: str, packages: str) -> ModelError:
    return ModelError(
        f"{what}, which needs packages that are not installed ({packages}); install them "
        "(pip install 'ditprune[text]' brings those of text encoders)"
    )


def _check_tokenizer(folder: Path, named: type) -> None:
    """Refuse a tokenizer that only a package that is not installed can read. Raises ModelError."""
    files = sorted(folder.glob("*.model"))
    if "Tokenizer" in named.__name__ and files and not (folder / "tokenizer.json").exists():
        missing = [name for name in _OF_SENTENCEPIECE if not _is_installed(name)]
        if missing:
            raise _lacks(f"{files[0]}: is read by {named.__name__}", ", ".join(missing))


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def _renamed(library: str, class_name: str) -> str:
    """The name that the installed transformers has for a class of older ones, as diffusers says."""
    from diffusers.pipelines import pipeline_loading_utils

    rename = getattr(pipeline_loading_utils, "_maybe_remap_transformers_class", None)
    renamed = rename(class_name) if rename and library == "transformers" else None
    return str(renamed or class_name)


def _is_of_a_kind(named: type) -> bool:
    import diffusers

    library = named.__module__.split(".")[0]
    if library not in _LIBRARIES or issubclass(named, diffusers.DiffusionPipeline):
        return False
    if named is diffusers.AutoModel:  # it takes its class from the folder
        return False
    if named.__module__.startswith(_AUTO):
        return True
    return any(map(partial(_is_one_of, named), _LIBRARIES))


def _is_one_of(named: type, library: str) -> bool:
    """Whether a class is of one of the kinds of a library, which may not be installed."""
    if find_spec(library) is None:
        return False
    kinds = (getattr(import_module(library), name, None) for name in _KINDS[library])
    return issubclass(named, tuple(kind for kind in kinds if isinstance(kind, type)))


def _check_configs(folder: Path, named: type) -> None:
    """Refuse a config that names code in the folder, or a kernel on the hub. Raises ModelError."""
    chooses = named.__module__.startswith(_AUTO) or named.__name__.endswith("Processor")
    for file in (folder / name for name in _CONFIGS):
        if not file.exists():
            continue
        for key, value in _pairs(read_json(file, as_python=True)):
            names_kernel = "_implementation" in key and "/" in str(value)
            if names_kernel or (chooses and key == "auto_map"):
                raise ModelError(f"{file}: {key} names code; remove it, {_NEVER_RUN}")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """The keys and values of a JSON value, at every depth."""
    if isinstance(value, Mapping):
        yield from value.items()
    parts = value.values() if isinstance(value, Mapping) else value
    for part in parts if isinstance(value, (Mapping, list)) else ():
        yield from _pairs(part)


def _check_no_module(file: Path) -> None:
    """Refuse a file that diffusers would run instead of its own library."""
    if file.exists() or file.is_symlink():
        raise ModelError(f"{file}: diffusers would run it; remove it, {_NEVER_RUN}")
