"""Model folders that mislead: configurations, components elsewhere, code, links, odd files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

from hostile_ground import Ground, add, hostile

from folders import edit_json

DEEP = 100_000
NEVER_RUN = "code from model folders is never run"
DENOISER = ["diffusers", "DiTTransformer2DModel"]


def with_index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Ground], None]:
    return lambda ground: edit_json(ground.model / "model_index.json", change)


def with_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Ground], None]:
    return lambda ground: edit_json(ground.config, change)


def with_text(place: str, text: bytes) -> Callable[[Ground], None]:
    return lambda ground: (ground.model / place).write_bytes(text)


# --- what JSON can be ---

for name, text in {
    "empty": b"", "cut": b'{"a": ', "a list": b"[]", "a number": b"3",
    "UTF-16": "{}".encode("utf-16"),
    "Latin-1": '{"é": 1}'.encode("latin-1"), "NUL": b'{"a": 1}\x00', "nested deep": b'{"a":' * DEEP,
    "a number that is too long": b'{"a": ' + b"9" * 5000 + b"}", "pickled": b"\x80\x04}.",
}.items():  # fmt: skip
    word = "cannot be read as JSON|expected a JSON object"
    add(f"model_index.json: {name}", "inspect", word, with_text("model_index.json", text))
    add(f"config.json: {name}", "prune", word, with_text("transformer/config.json", text))
add("config.json: a hundred megabytes of nesting", "inspect", "cannot be read as JSON",
    with_text("transformer/config.json", b"[" * 100_000_000))  # fmt: skip
add(
    "config.json: nested as deep as JSON may",
    "inspect",
    "cannot be built from it|has shape|cannot be read",
    with_config(lambda config: config.update(norm_type=json.loads("[" * 600 + "]" * 600))),
)
add("scheduler_config.json: cut", "calibrate", "scheduler_config.json: cannot be read as JSON",
    with_text("scheduler/scheduler_config.json", b"{"))  # fmt: skip
add("scheduler_config.json: nested deep", "calibrate", "cannot be read as JSON",
    with_text("scheduler/scheduler_config.json", b'{"a":' * DEEP))  # fmt: skip

# --- components that are elsewhere ---

COMPONENT = "expected the plain name of a folder"
for name, key in {
    "above the model": "../../outside/model",
    "beside its own folder": "transformer/../transformer",
    "of the folder itself": ".",
    "of the folder above": "..",
    "below a component": "transformer/inner",
    "of no name": "",
    "with NUL": "transformer\x00",
    "with a name that is too long": "x" * 5000,
    "with a line break": "x\nerror: y",
}.items():

    def put(ground: Ground, key: str = key) -> None:
        shutil.copytree(ground.denoiser, ground.outside / "model")
        shutil.copytree(ground.denoiser, ground.denoiser / "inner")
        with_index(lambda index: index.update({key: DENOISER}))(ground)

    add(f"model_index.json: a denoiser {name}", "inspect prune", COMPONENT, put)


@hostile("inspect prune verify calibrate", COMPONENT)
def denoiser_at_an_absolute_place(ground: Ground) -> None:
    place = ground.outside / "model"
    shutil.copytree(ground.denoiser, place)
    for folder in (ground.model, ground.pruned):
        edit_json(folder / "model_index.json", lambda index: index.update({str(place): DENOISER}))


@hostile("calibrate", COMPONENT)
def decoder_above_the_model(ground: Ground) -> None:
    shutil.copytree(ground.model / "vae", ground.outside / "vae")
    with_index(lambda index: index.update({"../../outside/vae": index["vae"]}))(ground)


# --- links that leave the model ---

OUTSIDE = "outside the model|is a link to a folder"


@hostile("prune", OUTSIDE)
def link_to_a_system_file(ground: Ground) -> None:
    (ground.model / "vae" / "notes.txt").symlink_to("/etc/hostname")


@hostile("prune", OUTSIDE)
def link_by_a_relative_path(ground: Ground) -> None:
    (ground.model / "README.md").symlink_to("../../outside/secret.txt")


@hostile("prune", OUTSIDE)
def link_to_the_weights_of_a_decoder_elsewhere(ground: Ground) -> None:
    file = next((ground.model / "vae").glob("*.safetensors"))
    shutil.move(file, ground.outside / file.name)
    file.symlink_to(ground.outside / file.name)


@hostile("prune", OUTSIDE)
def link_to_a_config_elsewhere(ground: Ground) -> None:
    shutil.move(ground.config, ground.outside / "config.json")
    ground.config.symlink_to(ground.outside / "config.json")


@hostile("prune", OUTSIDE)
def link_to_a_component_elsewhere(ground: Ground) -> None:
    shutil.move(ground.model / "vae", ground.outside / "vae")
    (ground.model / "vae").symlink_to(ground.outside / "vae")


@hostile("prune", OUTSIDE)
def link_to_a_denoiser_elsewhere(ground: Ground) -> None:
    shutil.move(ground.denoiser, ground.outside / "denoiser")
    ground.denoiser.symlink_to(ground.outside / "denoiser")


@hostile("inspect calibrate", "is no regular file")
def pipe_in_place_of_a_config(ground: Ground) -> None:
    ground.config.unlink()
    os.mkfifo(ground.config)


@hostile("inspect", "is no regular file")
def device_in_place_of_a_config(ground: Ground) -> None:
    ground.config.unlink()
    ground.config.symlink_to("/dev/zero")


@hostile("inspect", "is no regular file")
def folder_in_place_of_a_config(ground: Ground) -> None:
    ground.config.unlink()
    ground.config.mkdir()


# --- classes and code ---


@hostile("calibrate evaluate", NEVER_RUN)
def pipeline_class_of_a_module_in_the_folder(ground: Ground) -> None:
    ground.code(ground.model / "pipeline.py")
    with_index(lambda index: index.update(_class_name=["pipeline", "Mine"]))(ground)


@hostile("calibrate", NEVER_RUN)
def pipeline_class_that_is_none(ground: Ground) -> None:
    ground.code(ground.model / "MyPipeline.py")
    with_index(lambda index: index.update(_class_name="MyPipeline"))(ground)


@hostile("calibrate", "diffusers cannot load it|is not in diffusers")
def pipeline_class_that_is_a_module_of_diffusers(ground: Ground) -> None:
    with_index(lambda index: index.update(_class_name="utils"))(ground)


@hostile("calibrate", NEVER_RUN)
def component_of_a_module_in_its_folder(ground: Ground) -> None:
    ground.code(ground.model / "scheduler" / "mine.py")
    with_index(lambda index: index.update(scheduler=["mine", "Scheduler"]))(ground)


@hostile("calibrate evaluate", NEVER_RUN)
def component_with_a_module_called_diffusers(ground: Ground) -> None:
    """diffusers takes a component from `<library>.py` in its folder before the library."""
    ground.code(ground.model / "scheduler" / "diffusers.py")


@hostile("calibrate", NEVER_RUN)
def denoiser_with_a_module_called_diffusers(ground: Ground) -> None:
    ground.code(ground.denoiser / "diffusers.py")


@hostile("calibrate", NEVER_RUN)
def pipeline_with_a_module_called_none(ground: Ground) -> None:
    """diffusers looks for f"{custom_pipeline}.py", and custom_pipeline is None."""
    ground.code(ground.model / "None.py")


@hostile("calibrate evaluate", NEVER_RUN)
def component_of_two_letters(ground: Ground) -> None:
    """diffusers unpacks a string of two letters as a library and a class."""
    ground.code(ground.model / "scheduler" / "o.py")
    with_index(lambda index: index.update(scheduler="os"))(ground)


@hostile("calibrate evaluate", NEVER_RUN)
def component_that_is_a_pipeline_with_code(ground: Ground) -> None:
    """diffusers loads it as it loads the whole: from None.py, or from modules in its folders."""
    shutil.copytree(ground.model, ground.outside / "model")
    shutil.rmtree(ground.model / "scheduler")
    shutil.move(ground.outside / "model", ground.model / "scheduler")
    ground.code(ground.model / "scheduler" / "None.py")
    with_index(lambda index: index.update(scheduler=["diffusers", "DiTPipeline"]))(ground)


for name, entry in {
    "of the system": ["os", "system"],
    "of the language": ["builtins", "eval"],
    "of a module by its path": ["../outside/code", "Mine"],
    "of no library": [None, "DDIMScheduler"],
    "of a number": [3, "DDIMScheduler"],
    "of an empty list": [],
    "of a list": [["diffusers"], "DDIMScheduler"],
    "of an object": {"os": 1, "system": 2},
    "of nothing and a number": [None, 3],
    "of three": ["diffusers", "DDIMScheduler", "x"],
    "of the machinery of pipelines": ["pipeline_utils", "os"],
    "of a dunder": ["__path__", "DDIMScheduler"],
    "of a path of modules": ["diffusers.schedulers", "DDIMScheduler"],
    "that is a pipeline": ["diffusers", "DiTPipeline"],
}.items():
    add(f"model_index.json: a scheduler {name}", "calibrate", NEVER_RUN,
        with_index(lambda index, entry=entry: index.update(scheduler=entry)))  # fmt: skip
for name, entry in {
    "that is a function": ["diffusers", "logging"],
    "that is a module": ["diffusers", "utils"],
    "that does not exist": ["diffusers", "DDIMScheduler2"],
    "of transformers that is a function": ["transformers", "pipeline"],
    "of one item": ["diffusers"],
    "of another kind": ["diffusers", "AutoencoderKL"],
    "that is a number": ["diffusers", 3],
    "that is nothing": ["diffusers", None],
    "that chooses by the folder": ["transformers", "AutoTokenizer"],
    "that is a helper": ["diffusers", "VaeImageProcessor"],
    "of another library's kind": ["transformers", "PretrainedConfig"],
}.items():
    add(f"model_index.json: a scheduler class {name}", "calibrate",
        f"{NEVER_RUN}|diffusers cannot load it",
        with_index(lambda index, entry=entry: index.update(scheduler=entry)))  # fmt: skip


@hostile("calibrate", "scheduler/config.json: cannot be read")
def scheduler_that_asks_for_remote_code(ground: Ground) -> None:
    ground.code(ground.model / "scheduler" / "modeling.py")
    edit_json(ground.model / "scheduler" / "scheduler_config.json", lambda config: config.update(
        auto_map={"AutoModel": "modeling.Mine"}))  # fmt: skip
    with_index(lambda index: index.update(scheduler=["diffusers", "AutoModel"]))(ground)


@hostile("calibrate", NEVER_RUN)
def decoder_that_asks_for_remote_code(ground: Ground) -> None:
    ground.code(ground.model / "vae" / "modeling.py")
    edit_json(
        ground.model / "vae" / "config.json",
        lambda config: config.update(
            auto_map={"AutoModel": "modeling.Mine"}, trust_remote_code=True, _class_name="Mine"
        ),
    )
    with_index(lambda index: index.update(vae=["diffusers", "AutoModel"]))(ground)


@hostile("inspect calibrate", "no denoiser of diffusers|no 'transformer' folder")
def denoiser_of_remote_code(ground: Ground) -> None:
    ground.code(ground.denoiser / "modeling.py")
    edit_json(ground.config, lambda config: config.update(
        auto_map={"AutoModel": "modeling.MyTransformer2DModel"}, trust_remote_code=True,
        _class_name="MyTransformer2DModel"))  # fmt: skip


@hostile("calibrate", "diffusers cannot load it|scheduler")
def pipeline_without_its_scheduler(ground: Ground) -> None:
    with_index(lambda index: index.pop("scheduler"))(ground)


@hostile("inspect", "has no 'transformer' folder")
def pipeline_without_a_denoiser(ground: Ground) -> None:
    with_index(lambda index: index.pop("transformer"))(ground)


@hostile("calibrate evaluate", "needs its pipeline")
def denoiser_without_a_pipeline(ground: Ground) -> list[object]:
    (ground.model / "model_index.json").unlink()
    shutil.copy(ground.config, ground.model / "config.json")
    shutil.copy(ground.weights, ground.model)
    return []


for name, changes, word in (
    ("a class that is none", {"_class_name": "DiTTransformer3DModel"}, "is no denoiser"),
    ("a class by a path", {"_class_name": "../../Transformer"}, "is no denoiser"),
    ("a class with a line break", {"_class_name": "Transformer\nerror: y"}, "is no denoiser"),
    ("a class that is an output", {"_class_name": "Transformer2DModelOutput"}, "is no denoiser"),
    ("heads of text", {"num_attention_heads": "two"}, "cannot be built from it"),
    ("heads below zero", {"num_attention_heads": -2}, "cannot be built from it"),
    ("no heads", {"num_attention_heads": 0}, "cannot be built|has shape|needs|no block"),
    ("no layers", {"num_layers": 0}, "block"),
    ("a width beyond memory", {"attention_head_dim": 10**9}, "has shape|cannot be built"),
    ("a width beyond 64 bits", {"attention_head_dim": 10**30}, "31 digits"),
    ("a width that is NaN", {"attention_head_dim": float("nan")}, "NaN is no number"),
    ("a billion layers", {"num_layers": 10**9}, "num_layers"),
    ("more layers than weights", {"num_layers": 5}, "not in the weights"),
    ("quantised weights", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
):
    add(f"config.json: {name}", "inspect prune", word,
        with_config(lambda config, changes=changes: config.update(changes)))  # fmt: skip


# --- code that is only there: nothing runs it, whatever the verb says ---


def inert(ground: Ground) -> None:
    """Modules and pickles in every folder, and every field that some loader would follow."""
    for folder in (ground.model, *(p for p in ground.model.iterdir() if p.is_dir())):
        for name in ("__init__", "modeling", "pipeline", "custom", "setup", "conftest", "torch"):
            ground.code(folder / f"{name}.py")
        ground.code(folder / "sitecustomize.py")
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scaler.pkl"):
            ground.pickle(folder / name)
    fields = {
        "auto_map": {"AutoModel": "modeling.Mine", "AutoConfig": "modeling.Mine"},
        "custom_pipeline": "pipeline", "trust_remote_code": True, "custom_pipelines": {"a": "b"},
    }  # fmt: skip
    edit_json(ground.config, lambda config: config.update(fields))
    edit_json(ground.model / "vae" / "config.json", lambda config: config.update(fields))
    (ground.model / "vae" / "nothing.json").symlink_to("nowhere")
    (ground.model / "loop.json").symlink_to("loop.json")
    os.mkfifo(ground.model / "pipe.json")
    (ground.model / "folder.json").mkdir()
