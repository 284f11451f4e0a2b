"""JSON of others: each malformed value becomes one line that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditprune.errors import ModelError, ResultsError
from ditprune.writing.json_file import MOST_BYTES, parse_json, read_json

MALFORMED = {
    "nothing": "",
    "no JSON": "{",
    "a list": "[]",
    "NaN": '{"a": NaN}',
    "Inf": '{"a": [-Infinity]}',
    "a float beyond float64": '{"a": 1e999}',
    "an integer of 21 digits": '{"a": ' + "9" * 21 + "}",
    "an integer of 5000 digits": '{"a": ' + "9" * 5000 + "}",
    "lists without end": '{"a": ' + "[" * 100_000,
    "lists 5000 deep": '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
    "objects 200 deep": '{"a": ' * 200 + "1" + "}" * 200,
    "the first half of a character": r'{"a": "\ud800"}',
    "the second half of a character": r'{"a": ["\udc00"]}',
    "half a character as a key": r'{"a": {"\uD8aB": 1}}',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_value_is_one_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(MALFORMED[name], encoding="utf-8")
    with pytest.raises(ModelError) as error:
        read_json(file)
    assert str(error.value).startswith(f"{file}: ")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(file)) + 200
    with pytest.raises(ResultsError):
        read_json(file, error_type=ResultsError)


def test_bytes_that_are_not_utf_8_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ModelError, match="utf-8"):
        read_json(file)


def test_a_file_beyond_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with file.open("wb") as stream:
        stream.truncate(2 * 1024**3)  # takes no space
    with pytest.raises(ModelError, match="larger than 64 MiB"):
        read_json(file)
    file.write_bytes(b" " * (MOST_BYTES - 2) + b"{}")
    assert read_json(file) == {}


def test_names_of_files_that_are_not_utf_8_come_back(tmp_path: Path) -> None:
    """We write the names of folders into manifests."""
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "x.json").write_text(json.dumps({"a": name}), encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": name}


def test_whole_characters_are_read_in_both_forms() -> None:
    assert parse_json(r'"\ud83d\ude00"') == parse_json('"😀"') == "😀"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.text()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_we_write_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
