"""Pushing to the hub: a fake one on this machine, spoken to by huggingface_hub itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from fake_hub import TOKEN, FakeHub, fake_hub
from folders import edit_tensors, files_of, shards_of

# huggingface_hub's own way of sending a large file, to a client that would like another.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(
    ditprune: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FakeHub]:  # after `ditprune`, which goes off the network
    from huggingface_hub import constants

    with fake_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the fake one speaks LFS only
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def pruned(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "out"
    prune_checkpoint(locate(str(tiny_pipeline)), out, None, build(saliency="magnitude"))
    return out


def test_prune_pushes_what_it_wrote(
    tiny_pipeline: Path, hub: FakeHub, ditprune: Run, tmp_path: Path
) -> None:
    code, out, err = ditprune(
        "prune", tiny_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude",
        "--push-to-hub", "me/pruned",
    )  # fmt: skip
    assert code == 0, err
    assert f"pushed: {hub.address}/me/pruned" in out
    assert TOKEN not in out + err
    there = dict(hub.repos["me/pruned"])
    assert there.pop(".gitattributes") == b""
    assert there == files_of(tmp_path / "out")
    assert hub.cards
    assert hub.private == set()


def test_push_puts_the_folder_there_and_again(
    pruned: Path, hub: FakeHub, ditprune: Run, tmp_path: Path
) -> None:
    code, out, err = ditprune("push", pruned, "me/pruned", "--private")
    assert (code, out.strip()) == (0, f"pushed: {hub.address}/me/pruned"), err
    assert hub.private == {"me/pruned"}
    hub.repos["me/pruned"] |= {"transformer/older.safetensors": b"old", "notes.txt": b"mine"}
    (folder := Path(shutil.copytree(pruned, tmp_path / "out"))).joinpath(".hidden").touch()
    assert ditprune("push", folder, "me/pruned")[0] == 0
    there = dict(hub.repos["me/pruned"])
    assert there.pop("notes.txt") == b"mine"
    assert there.pop(".gitattributes") == b""
    assert there == files_of(pruned)
    assert all(TOKEN not in text for text in (out, err))


def test_nobody_is_logged_in(
    pruned: Path, hub: FakeHub, ditprune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = ditprune("push", pruned, "me/pruned")
    assert code == 2
    assert "not logged in to the hub; run `hf auth login` or set HF_TOKEN" in err
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["pruned", "a b/c", "me/a/b", "../me"])
def test_an_id_that_is_none(repo: str, pruned: Path, hub: FakeHub, ditprune: Run) -> None:
    code, _, err = ditprune("push", pruned, repo)
    assert code == 2
    assert f"{repo}: is not the id of a repository" in err
    assert hub.requests == []


def test_a_false_token_is_refused_and_not_shown(
    pruned: Path, hub: FakeHub, ditprune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-another-form")
    code, out, err = ditprune("push", pruned, "me/pruned")
    assert code == 2
    assert "me/pruned: the hub refused or did not answer" in err
    assert "a-secret" not in out + err


def test_somebody_elses_name_is_refused(pruned: Path, hub: FakeHub, ditprune: Run) -> None:
    code, _, err = ditprune("push", pruned, "other/pruned")
    assert code == 2
    assert "You don't have the rights" in err
    assert hub.repos == {}


def test_a_repository_with_other_work_is_refused_before_pruning(
    tiny_pipeline: Path, hub: FakeHub, ditprune: Run, tmp_path: Path
) -> None:
    hub.repos["me/other"] = {".gitattributes": b"", "model_index.json": b"{}"}
    before = dict(hub.repos["me/other"])
    code, _, err = ditprune(
        "prune", tiny_pipeline, "-o", tmp_path / "out", "--saliency", "magnitude",
        "--push-to-hub", "me/other",
    )  # fmt: skip
    assert code == 2
    assert "holds 1 files and no ditprune.json" in err
    assert list(tmp_path.iterdir()) == []
    assert hub.repos["me/other"] == before


def test_a_folder_with_a_false_claim_is_not_pushed(
    pruned: Path, hub: FakeHub, ditprune: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pruned, tmp_path / "out"))
    (shard,) = shards_of(folder / "transformer")
    edit_tensors(shard, lambda tensors: next(iter(tensors.values())).fill_(1))
    code, _, err = ditprune("push", folder, "me/pruned")
    assert code == 2
    assert "not pushed, because one of its claims is false" in err
    assert hub.repos == {}


def test_what_the_hub_says_at_the_end_is_told(pruned: Path, hub: FakeHub, ditprune: Run) -> None:
    hub.refuses = 400
    code, _, err = ditprune("push", pruned, "me/pruned")
    assert code == 2
    assert "Invalid card" in err


def test_no_hub_at_all(
    pruned: Path, hub: FakeHub, ditprune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = ditprune("push", pruned, "me/pruned")
    assert code == 2
    assert "the hub refused or did not answer" in err
    assert len(err.splitlines()) == 1


def test_a_link_out_of_the_folder_is_not_pushed(
    ditprune: Run, hub: FakeHub, pruned: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    own = shutil.copytree(pruned, tmp_path / "own")
    (own / "notes.txt").symlink_to(tmp_path / "secret.txt")
    code, out, err = ditprune("push", own, "me/linked")
    assert (code, out) == (2, "")
    assert "notes.txt: links to" in err
    assert "me/linked" not in hub.repos


def test_what_is_no_part_of_the_model_is_named_and_stays(
    pruned: Path, hub: FakeHub, ditprune: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pruned, tmp_path / "own"))
    (folder / "diary.txt").write_text("private", encoding="utf-8")
    code, _, err = ditprune("push", folder, "me/listed")
    assert code == 0
    assert "not uploaded, as no part of the model: diary.txt" in err
    assert "diary.txt" not in hub.repos["me/listed"]
