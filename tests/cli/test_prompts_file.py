"""Files of prompts as editors and spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditprune.cli.options import read_prompts
from ditprune.errors import RecipeError

CAT = ("a cat",)


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("p.txt", "\ufeffa cat\n", CAT),
        ("p.txt", "a cat\r\na dog\ra fox\n\n \n", ("a cat", "a dog", "a fox")),
        (
            "p.txt",
            "a cat\u2028on a mat\u2029\x85here\x0b\x0c\x1c!\n",
            ("a cat\u2028on a mat\u2029\x85here\x0b\x0c\x1c!",),
        ),
        ("p.tsv", "\ufeffid\tcaption\n1\ta cat\n", CAT),
        ("p.TSV", "ID\tPrompt\r\n1\ta cat\r\n", CAT),
        ("p.tsv", "\n\nimage_id\ttext\n1\ta cat\n", CAT),
        ("p.tsv", "1\ttext\n2\ta cat\n", ("text", "a cat")),
        ("p.tsv", "1\ta cat\nid\tcaption\n", ("a cat", "caption")),
        ("p.tsv", '1\t"a cat\u2028on a ""mat"""\n', ('a cat\u2028on a "mat"',)),
    ],
)
def test_each_line_is_one_prompt(name: str, text: str, prompts: tuple[str, ...], tmp_path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no line with text"), (b"\xef\xbb\xbf", "no line with text"),
        ("a cat\n".encode("utf-16"), "cannot be read as UTF-8"), (b"a\0b", "holds NUL"),
        (b"x" * (64 * 1024**2 + 1), "larger than 64 MiB"), (b"\xff", "cannot be read"),
    ],
    ids=["empty", "only a mark", "UTF-16", "NUL", "too large", "latin-1"],
)  # fmt: skip
def test_what_holds_no_prompts_is_one_line(content: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(RecipeError, match=word):
        read_prompts(tmp_path / "p.txt")


def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(RecipeError, match="holds NUL"):
        read_prompts(Path("/dev/zero"))
