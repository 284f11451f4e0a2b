"""Calls on disk: the same trees and bits back, and a refusal of everything else."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import (
    HEADER,
    load_calibration_set,
    save_calibration_set,
    start_calibration_set,
)
from ditprune.errors import ModelError, OutputError
from folders import edit_json

UNIT = "unit-00000.safetensors"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.uint8, torch.bool,
]  # fmt: skip


def nested() -> Call:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 2), generator=generator).to(dtype) for dtype in DTYPES
    }
    return Call(
        (torch.randn(2, 3, generator=generator), None, (1, [2.5, "text", (True,)]), []),
        {
            "timestep": torch.tensor(7),
            "nothing": None,
            "return_dict": False,
            "added": {"inner": {"tensors": tensors}, "empty": {}, "pair": ()},
            "text": "é\n",
            "number": -0.1,
            "not_contiguous": torch.arange(6).reshape(2, 3).T,
        },
    )


def shape_of(tree: Any) -> Any:
    """The tree with every leaf in a form that compares by value and type."""
    if isinstance(tree, dict):
        return {key: shape_of(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree), [shape_of(value) for value in tree]
    if isinstance(tree, Tensor):
        return tree.dtype, tree.shape, tree.tolist()
    return type(tree), tree


def test_calls_come_back_as_they_were(tmp_path) -> None:
    calls = [nested(), Call((), {"x": torch.zeros(1)}), Call((torch.ones(2),))]
    save_calibration_set(calls, {"seed": 3, "labels": [1, 2]}, tmp_path / "set")
    kept = load_calibration_set(tmp_path / "set")
    loaded, _ = kept.read(0)
    assert kept.protocol == {"seed": 3, "labels": [1, 2]}
    assert (kept.num_units, kept.missing()) == (1, [])
    assert len(loaded) == 3
    for one, two in zip(loaded, calls, strict=True):
        assert isinstance(one, Call)
        assert shape_of(one.args) == shape_of(two.args)
        assert shape_of(one.kwargs) == shape_of(two.kwargs)


def test_the_bits_of_floats_come_back(tmp_path, same_bits) -> None:
    odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45])
    save_calibration_set([Call((odd, odd.bfloat16()))], {}, tmp_path / "set")
    (call,), _ = load_calibration_set(tmp_path / "set").read(0)
    same_bits(call.args[0], odd)
    same_bits(call.args[1], odd.bfloat16())


def test_tensors_that_share_memory_are_stored_whole(tmp_path, same_bits) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    save_calibration_set([Call((whole[0], whole[1:], whole))], {}, tmp_path / "set")
    (call,), _ = load_calibration_set(tmp_path / "set").read(0)
    for one, two in zip(call.args, (whole[0], whole[1:], whole), strict=True):
        same_bits(one, two)


def test_the_same_calls_are_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        save_calibration_set([nested()], {"seed": 0}, tmp_path / name)
    for file in (HEADER, UNIT):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    "value",
    [object(), torch.device("cpu"), {1, 2}, b"bytes", 1j, len, torch.zeros(1, dtype=torch.cdouble)],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(value, tmp_path) -> None:
    call = Call((torch.zeros(1),), {"deep": [{"down": value}]})
    is_tensor = isinstance(value, torch.Tensor)
    kind = "a tensor of torch.complex128" if is_tensor else type(value).__name__
    with pytest.raises(OutputError, match=f"is {kind}, which cannot be stored"):
        save_calibration_set([call], {}, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_size_is_stored_as_a_tuple(tmp_path) -> None:
    """torch.Size is a tuple; what is written must be read again."""
    calls = [Call((torch.zeros(1),), {"size": torch.zeros(2, 3).shape})]
    save_calibration_set(calls, {}, tmp_path / "set")
    (call,), _ = load_calibration_set(tmp_path / "set").read(0)
    assert tuple(call.kwargs["size"]) == (2, 3)


@pytest.fixture
def folder(tmp_path):
    save_calibration_set([nested()], {"seed": 0}, tmp_path / "set")
    return tmp_path / "set"


def refused(folder, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_calibration_set(folder).read(0)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("file", [HEADER, UNIT])
@pytest.mark.parametrize("spoil", ["missing", "empty", "truncated", "garbage"])
def test_a_broken_file_is_refused(file, spoil, folder) -> None:
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    if spoil != "missing":
        path.write_bytes({"empty": b"", "truncated": content[:-3], "garbage": b"\x80\x02."}[spoil])
    refused(folder, "not a (unit of a )?calibration set|cannot be read as JSON")


def test_a_folder_of_something_else_is_refused(folder, tmp_path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    refused(folder, "not a calibration set")
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / "file", "not a calibration set")


@pytest.mark.parametrize(
    "changes",
    [{"format": 1}, {"num_units": 0}, {"num_units": "x"}, {"protocol": 3}, {"guard": None}],
    ids=str,
)
def test_an_edited_header_is_refused(changes, folder) -> None:
    edit_json(folder / HEADER, lambda content: content.update(changes))
    refused(folder, "not a calibration set")


ARGS, KWARGS = {"args": {"tuple": []}}, {"kwargs": {"dict": {}}}
WHERE = {"place": 0.5, "denoiser": "transformer"}


@pytest.mark.parametrize(
    "calls",
    [
        None,
        [{}],
        [{**ARGS, **WHERE}],
        [{**ARGS, **KWARGS}],
        [{**ARGS, **KWARGS, **WHERE, "place": "x"}],
        [{**KWARGS, **WHERE, "args": {"value": 1, "dict": {}}}],
        [{**KWARGS, **WHERE, "args": {"tuple": [{"tensor": "999999"}]}}],
        [{**KWARGS, **WHERE, "args": {"pickle": "x"}}],
        [{**KWARGS, **WHERE, "args": {"dtype": "save"}}],
        [{**KWARGS, **WHERE, "args": {"tuple": [3]}}],
    ],
    ids=str,
)
def test_an_edited_record_is_refused(calls, folder) -> None:
    metadata = {"ditprune.calls": json.dumps({"calls": calls, "notes": {}})}
    save_file(load_file(folder / UNIT), folder / UNIT, metadata=metadata)
    refused(folder, "not a unit of a calibration set")


@pytest.mark.parametrize("metadata", [None, {"ditprune.calls": "{"}, {"ditprune.calls": "[]"}])
def test_a_unit_without_its_record_is_refused(metadata, folder) -> None:
    save_file(load_file(folder / UNIT), folder / UNIT, metadata=metadata)
    refused(folder, "not a unit of a calibration set")


def test_places_denoisers_and_dtypes_come_back(tmp_path) -> None:
    calls = [
        Call((torch.ones(1),), {"dtype": torch.bfloat16}, 0.25, "transformer_2"),
        Call((torch.ones(1),)),
    ]
    save_calibration_set(calls, {}, tmp_path / "set")
    (one, two), _ = load_calibration_set(tmp_path / "set").read(0)
    assert one.kwargs["dtype"] is torch.bfloat16
    assert [(c.place, c.denoiser) for c in (one, two)] == [
        (0.25, "transformer_2"), (None, "transformer"),
    ]  # fmt: skip


def test_a_set_is_filled_unit_by_unit(tmp_path) -> None:
    kept = start_calibration_set(tmp_path / "set", 3, {"seed": 1}, {"weights": "a"})
    assert kept.missing() == [0, 1, 2]
    kept.write(1, [Call((torch.ones(1),))], {"rows_per_image": 2})
    again = load_calibration_set(tmp_path / "set")
    assert again == kept
    assert again.missing() == [0, 2]
    assert again.identity == {"weights": "a"}
    calls, notes = again.read(1)
    assert len(calls) == 1
    assert notes == {"rows_per_image": 2}
    with pytest.raises(ModelError, match=r"unit-00000.*not a unit"):
        again.read(0)
