"""Statistics, recipes, prompts and labels that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_ground import Ground, Spoil, add, hostile
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from folders import edit_tensors

LAYER = "transformer_blocks.1.ff.net.2"
STATISTICS, CALLS = "ditprune.statistics", "ditprune.calls"


def edit_metadata(file: Path, key: str, change: Callable[[Any], Any]) -> None:
    """Change the JSON in the metadata of a safetensors file, its tensors staying."""
    with safe_open(file, framework="pt") as stream:
        content = json.loads(stream.metadata()[key])
    change(content)
    save_file(load_file(file), file, metadata={key: json.dumps(content)})


def edit_statistics(ground: Ground, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the sums of a statistics file, its record staying."""
    with safe_open(ground.statistics, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(ground.statistics)
    change(tensors)
    save_file(tensors, ground.statistics, metadata=metadata)


# --- statistics ---

NO_STATISTICS = "not statistics of ditprune|not a complete safetensors file"


def sums(change: Callable[[Tensor], Tensor]) -> Spoil:
    def spoil(ground: Ground) -> None:
        edit_statistics(ground, lambda ts: ts.update({key: change(one) for key, one in ts.items()}))

    return spoil


def denoiser_record(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    return lambda ground: edit_metadata(
        ground.statistics, STATISTICS, lambda record: change(record["denoisers"]["transformer"])
    )


def layer_record(**changes: Any) -> Spoil:
    return denoiser_record(lambda record: record["layers"][LAYER].update(changes))


for name, change in {
    "empty": lambda raw: b"", "cut": lambda raw: raw[:-1], "a pickle": lambda raw: b"\x80\x04}.",
    "a header of 2^63 bytes": lambda raw: (1 << 63).to_bytes(8, "little") + raw[8:],
}.items():  # fmt: skip
    add(
        f"statistics: {name}",
        "inspect prune",
        NO_STATISTICS,
        lambda g, change=change: g.statistics.write_bytes(change(g.statistics.read_bytes())),
    )
for name, change in {
    "negative": lambda t: t - 1e9,
    "NaN": lambda t: t * float("nan"),
    "Inf": lambda t: t + float("inf"),
    "float32": lambda t: t.float(),
    "of rank 1": lambda t: t[0].clone(),
    "of whole numbers": lambda t: t.long(),
    "one bin short": lambda t: t[:-1].clone(),
}.items():
    add(f"statistics: sums {name}", "inspect prune", NO_STATISTICS, sums(change))
add("statistics: sums of another length", "inspect prune", "input channels, the model has",
    sums(lambda t: t[:, 1:].clone()))  # fmt: skip
add("statistics: sums of nothing", "inspect prune", "input channels, the model has",
    sums(lambda t: t[:, :0].clone()))  # fmt: skip
add("statistics: sums beyond float32", "inspect prune", "NaN or Inf|exceed float32",
    sums(lambda t: t * 0 + 1e300))  # fmt: skip
for name, spoil in {
    "a layer of a state that is not there": layer_record(state="nowhere"),
    "tokens that are text": layer_record(tokens_in_bin=["many"] * 11),
    "tokens without end": layer_record(tokens_in_bin=[float("inf")] * 11),
    "tokens in too few bins": layer_record(tokens_in_bin=[1]),
    "calls without end": denoiser_record(lambda r: r.update(num_calls=float("inf"))),
    "calls that are NaN": denoiser_record(lambda r: r.update(num_calls=float("nan"))),
    "calls of too many digits": denoiser_record(lambda r: r.update(num_calls="9" * 5000)),
    "no fingerprints": denoiser_record(lambda r: r.pop("fingerprints")),
    "layers that are a list": denoiser_record(lambda r: r.update(layers=[])),
    "inputs without end": denoiser_record(lambda r: r.update(num_inputs={"a": float("inf")})),
    "a padding of one number": denoiser_record(lambda r: r.update(padding={"a": [1]})),
}.items():
    add(f"statistics: {name}", "inspect prune", NO_STATISTICS, spoil)
add("statistics: a layer missing", "inspect prune", f"no layer '{LAYER}'",
    denoiser_record(lambda record: record["layers"].pop(LAYER)))  # fmt: skip
add("statistics: a fingerprint of another weight", "inspect prune", "made from other weights",
    denoiser_record(lambda record: record["fingerprints"].update({LAYER: "0" * 32})))  # fmt: skip
for name, change in {
    "of another format": lambda record: record.update(format=99),
    "without a format": lambda record: record.pop("format"),
    "of denoisers that are a list": lambda record: record.update(denoisers=[1]),
}.items():
    add(f"statistics: {name}", "inspect", NO_STATISTICS,
        lambda g, change=change: edit_metadata(g.statistics, STATISTICS, change))  # fmt: skip
add(
    "statistics: of no denoiser",
    "inspect prune",
    "none of the denoiser 'transformer'",
    lambda g: edit_metadata(g.statistics, STATISTICS, lambda record: record["denoisers"].clear()),
)


@hostile("inspect prune", NO_STATISTICS)
def statistics_nested_deep(ground: Ground) -> None:
    text = '{"format":' * 100_000
    save_file(load_file(ground.statistics), ground.statistics, metadata={STATISTICS: text})


@hostile("prune", NO_STATISTICS)
def statistics_that_are_weights(ground: Ground) -> list[object]:
    return ["--statistics", ground.weights]


@hostile("prune", "no such statistics file")
def statistics_that_are_a_folder(ground: Ground) -> list[object]:
    return ["--statistics", ground.model]


@hostile("inspect prune", "made from other weights")
def statistics_of_another_model(ground: Ground) -> None:
    edit_tensors(ground.weights, lambda tensors: [tensor.mul_(1.5) for tensor in tensors.values()])


# --- recipes ---

for name, text, word in (
    ("empty", b"", "cannot be read as JSON"),
    ("cut", b"{", "cannot be read as JSON"),
    ("a list", b"[]", "expected a JSON object"),
    ("UTF-16", "{}".encode("utf-16"), "cannot be read as JSON"),
    ("nested deep", b'{"recipe":' * 100_000, "cannot be read as JSON"),
    ("an unknown key", b'{"sparsty": 0.5}', "unknown key 'sparsty'; did you mean 'sparsity'"),
    ("a key of code", b'{"__class__": "x"}', "unknown key"),
    ("a key with a line break", b'{"a\\nerror: b": 1}', "unknown key"),
    ("a key with escape codes", b'{"\\u001b[2J": 1}', "unknown key"),
    ("a key of half a character", b'{"\\ud800": 1}', "half of a character"),
    ("a recipe in a recipe", b'{"recipe": {"recipe": {}}}', "unknown key 'recipe'"),
    ("a recipe of nothing", b'{"recipe": null}', "expected a JSON object"),
    ("a sparsity of NaN", b'{"sparsity": NaN}', "NaN is no number"),
    ("a sparsity of Inf", b'{"sparsity": 1e999}', "too large for a number"),
    ("a sparsity below zero", b'{"sparsity": -0.1}', "--sparsity -0.1"),
    ("a sparsity of all", b'{"sparsity": 1}', "--sparsity 1"),
    ("a sparsity of text", b'{"sparsity": "0.5"}', "--sparsity 0.5"),
    ("a sparsity of true", b'{"sparsity": true}', "--sparsity True"),
    ("a sparsity of a list", b'{"sparsity": [0.5]}', "--sparsity"),
    ("a saliency that is none", b'{"saliency": "os.system"}', "'os.system' is unknown"),
    ("a saliency of a list", b'{"saliency": ["stw"]}', "expected a name"),
    ("a granularity of a map", b'{"granularity": {}}', "expected a name"),
    ("a pattern of nothing kept", b'{"pattern": "0:4"}', "0:4"),
    ("a pattern of all kept", b'{"pattern": "4:2"}', "4:2"),
    ("a pattern of endless groups", b'{"pattern": "1:99999999999999999999"}', "expected N:M"),
    ("a pattern of too many digits", b'{"pattern": "1:' + b"9" * 5000 + b'"}', "expected N:M"),
    ("a pattern of a number", b'{"pattern": 24}', "24"),
    ("a pattern and a sparsity", b'{"pattern": "2:4", "sparsity": 0.5}', "exclude each other"),
    ("powers of NaN", b'{"weight_power": NaN}', "NaN is no number"),
    ("powers of text", b'{"weight_power": "two"}', "two"),
    ("powers of a map", b'{"activation_power": {}}', "activation-power"),
    ("powers beyond float32", b'{"weight_power": 1000000}', "weight-power|exceed float32"),
    ("a threshold of a list", b'{"cag_threshold": [1]}', "--cag-threshold"),
    ("a threshold of NaN", b'{"cag_threshold": NaN}', "NaN is no number"),
    ("globs of numbers", b'{"include": [1]}', "expected globs"),
    ("globs of a map", b'{"exclude": {"a": 1}}', "expected globs"),
    ("globs that match nothing", b'{"include": ["../*"]}', "matches none"),
    ("globs that leave nothing", b'{"exclude": ["*"]}', "leave none"),
):
    add(f"recipe: {name}", "prune", word,
        lambda g, text=text: ["--recipe", g.write("recipe.json", text)])  # fmt: skip
add("recipe: a folder", "prune", "no such file", lambda g: ["--recipe", g.model])

# --- prompts and labels ---

for name, file, text, word in (
    ("in UTF-16", "p.txt", "a cat\n".encode("utf-16"), "cannot be read as UTF-8 text"),
    ("in UTF-16 without its mark", "p.txt", "a cat\n".encode("utf-16-le"), "NUL"),
    ("in UTF-32", "p.txt", "a cat\n".encode("utf-32"), "cannot be read as UTF-8 text"),
    ("in Latin-1", "p.txt", "un café\n".encode("latin-1"), "cannot be read as UTF-8 text"),
    ("with NUL", "p.txt", b"a cat\x00\nb\n", "NUL"),
    ("of nothing", "p.txt", b"", "no line with text"),
    ("of blank lines", "p.txt", b" \n\t\n\n", "no line with text"),
    ("of halves of characters", "p.txt", b"\xed\xa0\x80\n", "cannot be read as UTF-8 text"),
    ("of a model of labels", "p.txt", b"a cat\n", "pass --labels, not --prompts"),
    ("in a table of one column", "p.tsv", b"a cat\n", "line 1 has 1 columns"),
    ("in a table of three columns", "p.tsv", b"1\ta cat\n2\tb\tc\n", "line 2 has 3 columns"),
    ("in a table of empty captions", "p.tsv", b"1\ta cat\n2\t \n", "line 2"),
    ("in a table of nothing", "p.tsv", b"id\tcaption\n", "no line with text"),
    ("in a table with NUL", "p.tsv", b"1\ta\x00b\n", "NUL"),
    ("in a table with an endless cell", "p.tsv", b"1\t" + b"x" * 200_000 + b"\n", "line 1|field"),
    ("in a table with a stray return", "p.tsv", b"1\ta\rb\n2\tc\n", "p.tsv"),
    ("in a table with an open quote", "p.tsv", b'1\t"a\n2\tb\n', "p.tsv"),
):
    add(f"prompts: {name}", "calibrate", word,
        lambda g, file=file, text=text: ["--prompts", g.write(file, text)])  # fmt: skip
add(
    "prompts: nowhere",
    "calibrate evaluate",
    "cannot be read",
    lambda g: ["--prompts", g.outside / "no"],
)
add("prompts: a folder", "calibrate", "cannot be read", lambda g: ["--prompts", g.model])
for given in ("1000", "-1", "a", "", "1,,2", "1e3", "9" * 5000, "0x1", "nan", "0;1"):
    add(f"labels: {given[:9]!r}", "calibrate evaluate", "--labels",
        lambda g, given=given: ["--labels", given])  # fmt: skip
