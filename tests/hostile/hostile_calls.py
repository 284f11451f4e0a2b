"""Calibration sets that lie, and pruned folders that cannot be verified or compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from hostile_ground import Ground, Spoil, add, hostile
from hostile_inputs import CALLS, edit_metadata
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from folders import edit_json

# --- calibration sets ---

NO_SET = "not a calibration set|cannot be read as JSON|expected a JSON object"
NO_UNIT = "not a unit of a calibration set"


def with_calls(spoil: Spoil) -> Spoil:
    return lambda ground: (spoil(ground), ["--calibration-set", ground.calls])[1]


def unit_record(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    return with_calls(lambda ground: edit_metadata(ground.unit, CALLS, change))


def first_call(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    return unit_record(lambda record: change(record["calls"][0]))


def set_header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    return with_calls(lambda g: edit_json(g.calls / "calibration_set.json", change))


def nested(depth: int) -> Any:
    tree: Any = {"value": 1}
    for _ in range(depth):
        tree = {"list": [tree]}
    return tree


for name, change in {
    "of another format": lambda header: header.update(format=99),
    "of no units": lambda header: header.update(num_units=0),
    "of a billion units": lambda header: header.update(num_units=10**9),
    "of units without end": lambda header: header.update(num_units=float("inf")),
    "of units in words": lambda header: header.update(num_units="two"),
    "without a guard": lambda header: header.pop("guard"),
    "with a protocol of a number": lambda header: header.update(protocol=3),
}.items():
    add(f"calibration set: {name}", "calibrate", NO_SET, set_header(change))
add("calibration set: an empty folder", "calibrate", NO_SET,
    lambda g: (g.outside / "set").mkdir() or ["--calibration-set", g.outside / "set"])  # fmt: skip
add("calibration set: a file", "calibrate", NO_SET, lambda g: ["--calibration-set", g.recipe])
add("calibration set: a unit missing, of other settings", "calibrate", "begun with other settings",
    lambda g: g.unit.unlink() or ["--calibration-set", g.calls, "--seed", 7])  # fmt: skip
for name, change in {
    "empty": lambda raw: b"", "cut": lambda raw: raw[:-2], "a pickle": lambda raw: b"\x80\x04}.",
    "a header of 2^63 bytes": lambda raw: (1 << 63).to_bytes(8, "little") + raw[8:],
}.items():  # fmt: skip
    add(
        f"calibration unit: {name}",
        "calibrate",
        NO_UNIT,
        with_calls(lambda g, change=change: g.unit.write_bytes(change(g.unit.read_bytes()))),
    )
for name, spoil in {
    "calls that are a map": unit_record(lambda record: record.update(calls={"a": 1})),
    "calls that are nothing": unit_record(lambda record: record.update(calls=None)),
    "no notes": unit_record(lambda record: record.pop("notes")),
    "a tensor that is not there": first_call(lambda c: c.update(args={"tensor": "9"})),
    "an object by its class": first_call(lambda c: c.update(args={"class": "os.system"})),
    "a dtype that is a function": first_call(lambda c: c.update(args={"dtype": "load"})),
    "a place that is NaN": first_call(lambda c: c.update(place=float("nan"))),
    "a place beyond the way": first_call(lambda c: c.update(place=-0.35)),
    "a place without end": first_call(lambda c: c.update(place=float("inf"))),
    "arguments that are no tuple": first_call(lambda c: c.update(args={"value": 3})),
    "keywords that are no map": first_call(lambda c: c.update(kwargs={"list": []})),
}.items():
    add(f"calibration unit: {name}", "calibrate", NO_UNIT, spoil)
add("calibration unit: of another denoiser", "calibrate", "no calibration call reached",
    first_call(lambda call: call.update(denoiser="../x")), is_midway=True)  # fmt: skip
add("calibration unit: no calls", "calibrate", "no calibration call reached",
    unit_record(lambda record: record.update(calls=[])), is_midway=True)  # fmt: skip
add(
    "calibration unit: an argument that is none",
    "calibrate",
    "cannot run the calibration calls",
    first_call(lambda c: c["kwargs"]["dict"].update(ghost={"value": 1})),
    is_midway=True,
)
for name, change in {
    "NaN": lambda t: t * float("nan") if t.is_floating_point() else t,
    "another shape": lambda t: t.flatten(),
    "of whole numbers": lambda t: t.long(),
    "of no rows": lambda t: t[:0].clone(),
    "labels out of range": lambda t: t if t.is_floating_point() else t + 10**6,
}.items():

    def spoil_unit(ground: Ground, change: Callable[[Tensor], Tensor] = change) -> None:
        with safe_open(ground.unit, framework="pt") as stream:
            metadata = stream.metadata()
        tensors = {key: change(tensor) for key, tensor in load_file(ground.unit).items()}
        save_file(tensors, ground.unit, metadata=metadata)

    add(f"calibration unit: tensors {name}", "calibrate",
        "cannot run the calibration calls|NaN or Inf|no calibration call",
        with_calls(spoil_unit), is_midway=True)  # fmt: skip

add("calibration unit: nested as deep as JSON may", "calibrate", "cannot run the calibration calls",
    first_call(lambda c: c["args"].update(tuple=[nested(20)])), is_midway=True)  # fmt: skip
add("calibration unit: nested deeper than ours", "calibrate", NO_UNIT,
    first_call(lambda c: c["args"].update(tuple=[nested(240)])))  # fmt: skip
add("calibration unit: a tensor that is a list", "calibrate", "cannot run the calibration calls",
    first_call(lambda c: c["args"].update(tuple=[{"list": []}] * 3)), is_midway=True)  # fmt: skip

# --- manifests, where there is nothing to verify or to compare with ---


def manifest(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    return lambda g: edit_json(g.pruned / "transformer" / "ditprune.json", change)


add("manifest: missing", "verify", r"no ditprune\.json",
    lambda g: (g.pruned / "transformer" / "ditprune.json").unlink())  # fmt: skip
add("manifest: of a folder that is none", "verify", "neither model_index.json",
    lambda g: (shutil.rmtree(g.pruned), g.pruned.mkdir()))  # fmt: skip
add("manifest: of a folder that is not there", "verify", "no such folder",
    lambda g: shutil.rmtree(g.pruned))  # fmt: skip
for name, change in {
    "without a recipe": lambda claims: claims.pop("recipe"),
    "with a recipe of a list": lambda claims: claims.update(recipe=[]),
    "with targets that are nothing": lambda claims: claims.update(targets=None),
    "with targets that are not there": lambda claims: claims["targets"].update({"../x": {}}),
    "with targets that have no name": lambda claims: claims["targets"].update({"": {}}),
    "without targets": lambda claims: claims["targets"].clear(),
}.items():
    add(f"manifest: {name}", "evaluate", "ditprune.json cannot be read", manifest(change))
add("manifest: no JSON", "evaluate", "cannot be read as JSON",
    lambda g: (g.pruned / "transformer" / "ditprune.json").write_bytes(b"{"))  # fmt: skip


@hostile("evaluate", "other names or shapes")
def pruned_model_of_another_size(ground: Ground) -> None:
    edit_json(
        ground.pruned / "transformer" / "config.json", lambda config: config.update(num_layers=2)
    )


@hostile("evaluate", "would be called the same")
def pruned_models_of_one_name(ground: Ground) -> list[object]:
    return [ground.pruned]


@hostile("evaluate", "not a complete safetensors file")
def pruned_weights_cut(ground: Ground) -> None:
    file = next((ground.pruned / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
