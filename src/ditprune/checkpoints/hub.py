"""How is a pruned folder uploaded to the hub? As a repository, in one commit.

`check_repo` finds out before any work whether the user may push: it asks the hub for the user
behind the token and for the files of the repository. The token stays with huggingface_hub and is
never shown.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from ditprune.checkpoints.locate import check_inside
from ditprune.errors import OutputError
from ditprune.writing.files import MANIFEST
from ditprune.writing.model_files import files_below, is_hidden, named
from ditprune.writing.replaceable import listed_files

_log = logging.getLogger("ditprune")

# Old weights that this push does not replace would be loaded beside the new ones.
_REPLACED = ["*.safetensors", "*.safetensors.index.json"]
_TOKEN = re.compile(r"hf_\w+")


def check_repo(repo: str) -> None:
    """Refuse a repository that the user cannot push to, or that holds something else.

    Raises OutputError: the id is invalid, nobody is logged in, the hub does not answer, or the
    repository has files and none of them is a manifest of ditprune.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise ValueError("expected USER/NAME, as in me/pruned")
    except ValueError as error:
        raise OutputError(f"{repo}: is not the id of a repository ({error})") from None
    if get_token() is None:
        raise OutputError(f"{repo}: not logged in to the hub; run `hf auth login` or set HF_TOKEN")
    with _refusals(repo) as api:
        api.whoami()
        files = api.list_repo_files(repo) if api.repo_exists(repo) else []
    others = [name for name in files if not name.startswith(".") and name != "README.md"]
    if others and not any(Path(name).name == MANIFEST for name in files):
        raise OutputError(
            f"{repo}: holds {len(others)} files and no {MANIFEST}, so it is not a model that "
            "ditprune pushed; choose a new name"
        )


def push_folder(folder: Path, repo: str, private: bool = False) -> str:
    """Create the repository if needed, upload the model in the folder, and return its address.

    The log names files that are not uploaded, as they are no part of the model.

    Raises OutputError, and ModelError for a link out of the folder.
    """
    listed = listed_files(folder)
    paths = [path for path in files_below(folder) if not is_hidden(path)]
    for path in paths:
        check_inside(folder / path, folder)
    if left := [path.as_posix() for path in paths if path not in listed]:
        _log.info("not uploaded, as no part of the model: %s", named(left))
    with _refusals(repo) as api:
        address = str(api.create_repo(repo, private=private or None, exist_ok=True))
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload a model that ditprune pruned",
            allow_patterns=[escape(path.as_posix()) for path in paths if path in listed],
            ignore_patterns=[".*", "*/.*"],
            delete_patterns=_REPLACED,
        )
    return address


@contextmanager
def _refusals(repo: str) -> Iterator[Any]:
    """The hub's client; its errors become one OutputError on one line, without the token."""
    from huggingface_hub import HfApi, get_token

    try:
        yield HfApi(library_name="ditprune")
    except Exception as error:  # the hub client raises a dozen unrelated types
        token = get_token()
        text = _message(error) + (f": {_message(error.__cause__)}" if error.__cause__ else "")
        text = _TOKEN.sub("hf_…", text.replace(token, "hf_…") if token else text)
        raise OutputError(
            f"{repo}: the hub refused or did not answer ({text[:400]}); check the name, the "
            "connection, and that the token may write (`hf auth whoami`)"
        ) from None


def _message(error: BaseException) -> str:
    """An error's message on one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
