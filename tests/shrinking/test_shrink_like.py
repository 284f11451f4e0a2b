"""A fine-tune of the same base is cut where the base was; anything else is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ditprune
from ditprune.calls import Call
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import predicted, relative_error, run_call
from ditprune.errors import DitpruneError
from ditprune.progress import silent
from ditprune.shrinking.in_folder import shrink_folder
from ditprune.shrinking.like import likes_for
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.writing.files import read_manifest
from folders import edit_json, save_denoiser
from shrunk_by_hand import dense_tiny, described, what_goes
from tiny_denoisers import FAMILIES, Draw

DIT, LONG_SKIPS = "DiTTransformer2DModel", "UVit2DModel"
QUERIES = "transformer_blocks.0.attn1.to_q"
RECIPE = ShrinkRecipe(ratio=0.3, modulation=0.5, exclude="*.0.ff")


def calls_of(name: str) -> list[Call]:
    return [Call((), FAMILIES[name].call(Draw(seed))) for seed in range(8)]


def fine_tune(name: str) -> nn.Module:
    denoiser = FAMILIES[name].make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter *= 1 + 0.05 * torch.randn(parameter.shape, generator=generator)
    return denoiser


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            place = tmp_path_factory.mktemp("like")
            save_denoiser(FAMILIES[name].make(), place / "base")
            recipe = ShrinkRecipe(ratio=0.3) if name == LONG_SKIPS else RECIPE
            shrink_folder(
                locate(str(place / "base")), place / "small", lambda _: calls_of(name),
                {"transformer": recipe}, Placement(), False, silent,
            )  # fmt: skip
            made[name] = place / "small"
        return made[name]

    return folder


def shrink(folder: Path, out: Path, like: Path, name: str = DIT) -> Any:
    return ditprune.shrink(folder, out, calls_of(name), like=like)


def error(smaller: Path, dense: nn.Module, name: str) -> float:
    import diffusers

    denoiser = getattr(diffusers, name).from_pretrained(smaller)
    call = Call((), FAMILIES[name].call(Draw(99)))
    given = [predicted(run_call(m.eval(), call), call) for m in (denoiser, dense)]
    return relative_error([(given[0], given[1])])


@pytest.mark.parametrize("name", [DIT, LONG_SKIPS])
def test_a_fine_tune_loses_what_its_base_lost(name, small, tmp_path) -> None:
    tuned = fine_tune(name)
    folder, out = save_denoiser(tuned, tmp_path / "tuned"), tmp_path / "out"
    outcome = shrink(folder, out, small(name), name)
    ours, theirs = read_manifest(out), read_manifest(small(name))
    for word in ("groups", "recipe", "blocks", "ratio"):
        assert ours[word] == theirs[word], word
    ranks = [{n: r["rank"] for n, r in each["ranks"].items()} for each in (ours, theirs)]
    assert ranks[0] == ranks[1]
    assert ours["totals"]["after"] == theirs["totals"]["after"]
    assert any("relative" in note for note in outcome.notes)
    assert ditprune.verify(out) == []
    mine, others = error(out, tuned, name), error(small(name), FAMILIES[name].make(), name)
    assert 0 < mine < 2 * others


def test_an_interrupted_run_does_not_go_on_like_another(small, tmp_path) -> None:
    folder, out = save_denoiser(fine_tune(DIT), tmp_path / "tuned"), tmp_path / "out"

    def stop(what: str, *_: Any) -> None:
        if what == "writing tensors":
            raise KeyboardInterrupt

    model = locate(str(folder))
    with pytest.raises(KeyboardInterrupt):
        shrink_folder(
            model, out, lambda _: calls_of(DIT), {"transformer": RECIPE}, Placement(), False, stop,
            likes_for(model, small(DIT)),
        )  # fmt: skip
    with pytest.raises(DitpruneError, match="like"):
        shrink_folder(
            locate(str(folder)), out, lambda _: calls_of(DIT), {"transformer": RECIPE}, Placement(),
            False, silent,
        )  # fmt: skip


def test_words_and_like_exclude_each_other(small, tmp_path) -> None:
    folder = save_denoiser(fine_tune(DIT), tmp_path / "tuned")
    with pytest.raises(DitpruneError, match="like and ratio exclude each other"):
        ditprune.shrink(folder, tmp_path / "out", calls_of(DIT), 0.3, like=small(DIT))


def _wider() -> nn.Module:
    import diffusers

    config = {**FAMILIES[DIT].config, "num_attention_heads": 4}
    return diffusers.DiTTransformer2DModel(**config)


def _as_it_was(_: dict[str, Any]) -> None:
    """The manifest stays."""


def _a_group(claims: dict[str, Any]) -> dict[str, Any]:
    return next(g for g in claims["groups"].values() if len(g["kept"]) < g["num_units"])


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[dict[str, Any]], Any], str]] = {
    "another width": (_wider, _as_it_was, r"is \[\d+, \d+\], \[\d+, \d+\] in the base of"),
    "another model": (
        lambda: dense_tiny("FluxTransformer2DModel"), _as_it_was, "is missing, .* in the base of",
    ),
    "a group that is not there": (
        lambda: fine_tune(DIT),
        lambda c: c["groups"].update(x=_a_group(c)),
        "x: is .* and cannot lose units here",
    ),
    "units elsewhere": (
        lambda: fine_tune(DIT),
        lambda c: next(iter(_a_group(c)["parts"].values())).update({"0": [[0, 1, 1], [0, 1, 1]]}),
        "its parts are",
    ),
    "another kind": (
        lambda: fine_tune(DIT), lambda c: _a_group(c).update(kind="heads"), "kind are 'neurons'",
    ),
    "a layout": (lambda: fine_tune(DIT), lambda c: c.update(layout="stock"), "its layout is stock"),
    "a recipe": (
        lambda: fine_tune(DIT), lambda c: c["recipe"].update(ratio=7), "its recipe cannot be read",
    ),
    "a rank elsewhere": (
        lambda: fine_tune(DIT), lambda c: c["ranks"].update({QUERIES: {"rank": 1}}),
        f"{QUERIES}: has rank 1 .* is no modulation",
    ),
    "a rank too large": (
        lambda: fine_tune(DIT), lambda c: next(iter(c["ranks"].values())).update(rank=10_000),
        "has rank 10000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_one_line(case, small, tmp_path) -> None:
    make, change, told = REFUSED[case]
    folder = save_denoiser(make(), tmp_path / "tuned")
    like = tmp_path / "like"
    like.mkdir()
    for file in small(DIT).iterdir():
        (like / file.name).write_bytes(file.read_bytes())
    edit_json(like / "ditprune.json", change)
    with pytest.raises(DitpruneError, match=told) as caught:
        shrink(folder, tmp_path / "out", like)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_shrunk_or_lost_blocks_is_one_line(tmp_path) -> None:
    denoiser = dense_tiny(DIT)
    small = described(denoiser, what_goes(denoiser), tmp_path / "small")
    base = tmp_path / "small-before"
    for like, told in ((base, "ditprune.json"), (small, "whole blocks went")):
        with pytest.raises(DitpruneError, match=told):
            shrink(base, tmp_path / "out", like)
