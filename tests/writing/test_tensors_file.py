"""Named tensors in one file: as the library writes them, and nothing left of a killed run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_bytes

from ditprune.errors import ModelError, OutputError
from ditprune.writing.tensors_file import load_tensors, read_metadata, save_tensors

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
)  # fmt: skip
METADATA = {"words": '{"ünïcode": [1, "two"]}'}


def drawn() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    whole = {
        str(dtype).removeprefix("torch."): (torch.randn(3, 5, generator=draw) * 9).to(dtype)
        for dtype in DTYPES
    }
    strided = torch.randn(6, 4, generator=draw)
    return {
        **whole, "empty": torch.empty(0, 7), "number": torch.tensor(2.5),
        "transposed": strided.T, "every_other": strided[::2], "trained": strided.requires_grad_(),
    }  # fmt: skip


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def test_the_library_reads_what_was_written(tmp_path) -> None:
    tensors, file = drawn(), tmp_path / "file.safetensors"
    save_tensors(tensors, METADATA, file)
    read, loaded = load_file(file), load_tensors(file)
    assert loaded[1] == read_metadata(file) == METADATA
    assert read.keys() == loaded[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        for other in (read[name], loaded[0][name]):
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(bits(other), bits(tensor))


def test_the_file_is_the_one_the_library_would_write(tmp_path) -> None:
    """Layout, order and alignment: its own writer gives the same bytes where names sort alike."""
    tensors = {"b": torch.arange(3.0), "a": torch.arange(4.0), "c": torch.arange(2)}
    save_tensors(tensors, {"key": "text"}, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == save_bytes(tensors, {"key": "text"})


def test_a_file_may_be_read_by_whom_the_user_lets_read(tmp_path) -> None:
    (tmp_path / "plain").touch()
    save_tensors({"a": torch.ones(2)}, {}, tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "dtype",
    [n for n in ("complex128", "float4_e2m1fn_x2") if hasattr(torch, n)],  # new in 2.8
)
def test_numbers_that_the_format_cannot_hold_are_refused(dtype, tmp_path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.empty(4, 3, dtype=getattr(torch, dtype))}
    with pytest.raises(OutputError, match=rf"file: b is of torch\.{dtype}, which a safetensors"):
        save_tensors(tensors, {}, tmp_path / "file")
    assert not any(tmp_path.iterdir())


def test_a_file_that_was_cut_is_refused(tmp_path) -> None:
    file = tmp_path / "file"
    save_tensors({"a": torch.ones(99)}, {}, file)
    file.write_bytes(file.read_bytes()[:-1])
    for read in (load_tensors, read_metadata):
        with pytest.raises(ModelError, match="not a complete safetensors file"):
            read(file)


WRITE = """
import os, sys, torch
from pathlib import Path
from ditprune.writing import tensors_file
raw, written = tensors_file._raw, []

def write_two(tensor):
    written.append(tensor)
    if len(written) == 3:
        os.kill(os.getpid(), 9)
    return raw(tensor)

tensors_file._raw = write_two
tensors_file.save_tensors({str(i): torch.ones(99_999) for i in range(4)}, {}, Path(sys.argv[1]))
"""


def test_a_kill_while_it_is_written_leaves_nothing_that_the_next_run_does_not_take(
    tmp_path,
) -> None:
    file = tmp_path / "file"
    ran = subprocess.run([sys.executable, "-c", WRITE, str(file)], check=False)
    assert ran.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left != file
    assert left.stat().st_size > 400_000
    save_tensors({"a": torch.ones(2)}, {}, file)
    assert list(tmp_path.iterdir()) == [file]
