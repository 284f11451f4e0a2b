"""Readers under fuzzing: whatever the bytes, a value or a DitpruneError, and little memory."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_ground import Ground
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ditprune.calls import Call
from ditprune.checkpoints import calibration_set
from ditprune.checkpoints.calibration_set import HEADER, load_calibration_set, save_calibration_set
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.statistics_file import read_statistics_file, save_statistics
from ditprune.checkpoints.weights import Weights
from ditprune.cli.options import read_labels, read_pipeline_options, read_prompts
from ditprune.cli.recipe_options import read_recipe
from ditprune.errors import DitpruneError
from ditprune.pruning.verify import false_claims
from folders import STEM

MOST_BYTES = 50_000_000
few = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
many = settings(few, max_examples=150)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(
        ["", ".", "..", "../x", "/etc", "x\x00", "\ud800", "a\nb", "x" * 300, "2:4", "NaN", -1,
         1 << 63, 10**400, 1e308, float("inf"), float("nan")]
    )
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def mutated_json(draw: st.DrawFn, content: Any) -> Any:
    """The content with a few of its values replaced, removed, renamed or wrapped."""
    tree = [copy.deepcopy(content)]
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "wrap", "add"]))
        if how == "remove" and parent is not tree:
            del parent[key]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(scalars.map(str))] = parent.pop(key)
        elif how == "wrap":
            parent[key] = [parent[key]]
        elif how == "add" and isinstance(parent[key], dict):
            parent[key][draw(scalars.map(str))] = draw(values)
        else:
            parent[key] = draw(values)
    return tree[0]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value below a tree, as what holds it and its key."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


@st.composite
def mutated_bytes(draw: st.DrawFn, raw: bytes) -> bytes:
    """The bytes with a few of them replaced, removed, repeated or added, mostly near the start."""
    result = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, min(len(result), 600)) | st.integers(0, len(result)))
        length = draw(st.integers(0, 9))
        result[where : where + length] = draw(
            st.binary(max_size=12)
            | st.just(bytes(result[:length]))
            | st.sampled_from(
                [b"\xff" * 8, b"\x00" * 8, b"-1", b"9" * 20, b'"', b"{", b"[" * 2000, b"1e999"]
            )
        )
    return bytes(result)


@contextmanager
def bounded() -> Iterator[None]:
    """A value or a DitpruneError; tracemalloc sees Python's memory, buffers too."""
    tracemalloc.start()
    try:
        yield
    except DitpruneError:
        pass  # one of the two ends that are allowed
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MOST_BYTES


@pytest.fixture(scope="module")
def shared(valid, tmp_path_factory) -> Ground:
    """A ground where every example writes the one file it spoils anew."""
    from hostile_ground import copy as copy_to

    root = tmp_path_factory.mktemp("fuzz")
    for folder in valid.iterdir():
        copy_to(folder, root / folder.name)
    return Ground(root)


def fuzz_json(file: Path, read: Callable[[], Any], size: settings = few) -> None:
    """Spoil a JSON file again and again, read it, and put it back."""
    before = file.read_bytes()

    @size
    @given(mutated_json(json.loads(before)))
    def check(content: Any) -> None:
        file.write_text(json.dumps(content), encoding="utf-8")
        with bounded():
            read()

    try:
        check()
    finally:
        file.write_bytes(before)


def fuzz_bytes(file: Path, read: Callable[[], Any], size: settings = many) -> None:
    """The same with the bytes of any file."""
    before = file.read_bytes()

    @size
    @given(mutated_bytes(before))
    def check(raw: bytes) -> None:
        file.write_bytes(raw)
        with bounded():
            read()

    try:
        check()
    finally:
        file.write_bytes(before)


def read_all(folder: Path) -> None:
    """Every tensor whose dtype we can read."""
    weights = Weights(folder)
    for entry in weights.in_order():
        weights.read(entry.name)
        weights.read_slice(entry.name, 0, 0)


@pytest.fixture
def small(tmp_path) -> Path:
    """A folder with one small file of weights."""
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2).bfloat16()}
    save_file(tensors, tmp_path / f"{STEM}.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_weights(small) -> None:
    fuzz_bytes(small / f"{STEM}.safetensors", lambda: read_all(small))


def test_headers_of_weights(small) -> None:
    file = small / f"{STEM}.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")

    @many
    @given(mutated_json(json.loads(raw[8 : 8 + size])))
    def check(header: Any) -> None:
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
        with bounded():
            read_all(small)

    check()


def test_an_index(small) -> None:
    index = small / f"{STEM}.safetensors.index.json"
    weight_map = dict.fromkeys(("a.weight", "b"), f"{STEM}.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    fuzz_json(index, lambda: read_all(small), many)


def test_an_index_of_a_pipeline(shared) -> None:
    fuzz_json(shared.model / "model_index.json", lambda: locate(str(shared.model)), many)


def test_a_config(shared) -> None:
    fuzz_json(shared.config, lambda: skeleton(shared.denoiser))


def test_a_manifest(shared) -> None:
    folder = shared.pruned / "transformer"
    fuzz_json(
        folder / "ditprune.json",
        lambda: list(false_claims(ModelFolder("p", folder, {"t": folder}))),
    )


def test_statistics(shared) -> None:
    fuzz_bytes(shared.statistics, lambda: read_statistics_file(shared.statistics), few)


def fuzz_metadata(file: Path, key: str, read: Callable[[], Any]) -> None:
    """Spoil the JSON in the metadata of a safetensors file again and again."""
    tensors = load_file(file)
    with safe_open(file, framework="pt") as stream:
        record = json.loads(stream.metadata()[key])

    @many
    @given(mutated_json(record))
    def check(content: Any) -> None:
        save_file(tensors, file, metadata={key: json.dumps(content)})
        with bounded():
            read()

    check()


def test_the_record_of_statistics(tiny_stats, tmp_path) -> None:
    file = tmp_path / "s.safetensors"
    save_statistics({"transformer": tiny_stats}, file)
    fuzz_metadata(file, "ditprune.statistics", lambda: read_statistics_file(file))


@pytest.fixture
def kept(tmp_path) -> calibration_set.CalibrationSet:
    """A small calibration set."""
    call = Call(
        (torch.ones(2, 3), None, (1, [2.5])), {"t": torch.tensor(7), "d": torch.bfloat16}, 0.5
    )
    save_calibration_set([call, call], {"seed": 0}, tmp_path / "set")
    return load_calibration_set(tmp_path / "set")


def test_the_header_of_a_calibration_set(kept) -> None:
    header = kept.folder / HEADER
    fuzz_json(header, lambda: load_calibration_set(kept.folder).missing(), many)


def test_the_record_of_a_unit(kept) -> None:
    fuzz_metadata(kept.file(0), "ditprune.calls", lambda: kept.read(0))


def test_a_unit(kept) -> None:
    fuzz_bytes(kept.file(0), lambda: kept.read(0))


def test_a_recipe(tmp_path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({
        "saliency": "power", "weight_power": 2.0, "activation_power": 1.0, "granularity": "cag",
        "cag_threshold": 0.5, "sparsity": 0.5, "pattern": None, "include": ["*"], "exclude": [],
    }), encoding="utf-8")  # fmt: skip
    fuzz_json(file, lambda: read_recipe((str(file),)), many)
    fuzz_bytes(file, lambda: read_recipe((str(file),)))


@pytest.mark.parametrize("name", ["p.txt", "p.tsv"])
def test_prompts(name, tmp_path) -> None:
    file = tmp_path / name
    file.write_text('id\tcaption\n1\ta "cat"\n2\tun café\n\n3\t"b"\n', encoding="utf-8")
    fuzz_bytes(file, lambda: read_prompts(file))


@many
@given(st.text(max_size=20) | st.from_regex(r"[0-9,\s+_-]{0,12}"))
def test_labels_and_options(text: str) -> None:
    with bounded():
        read_labels(text)
    with bounded():
        read_pipeline_options((f"a={text}", text))
