"""How much room do hidden states take where blocks need earlier ones?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import InMemory
from ditprune.denoiser.blockwise.states import StatesOnDisk
from ditprune.errors import RecipeError
from ditprune.method.words import build
from ditprune.pruning.update.blockwise import room
from ditprune.pruning.update.blockwise.room import place_states
from foreign_builds import TOKENS, WIDTH, Denoiser, noise

ONE = 2 * TOKENS * WIDTH * 4  # of a block for two rows


class Deep(Denoiser):
    depth = 4


@pytest.mark.parametrize(
    ("needs", "words", "num_states"),
    [
        ((), {"preset": "fast"}, 4 + 1 + 1),  # all blocks, before the first, gradients
        ((), {"reconstruction": "obs"}, 2),
        ([set(), {0}, {0, 1}, {0, 2}, {3}], {"preset": "fast"}, 1 + 2 + 2 + 1 + 1 + 2),
        ([set(), {0}, {0, 1}, {0, 2}, {3}], {"reconstruction": "obs"}, 4),
    ],
)
def test_all_that_goes_on_takes_room(needs, words, num_states, tmp_path: Path) -> None:
    denoiser, call = Deep(), Call((), {"x": noise(2, TOKENS, WIDTH), "t": noise(2)})
    residence = InMemory(denoiser)
    chain = find_chain(denoiser, [f"blocks.{i}" for i in range(4)], [call], residence)
    assert isinstance(chain, Chain)
    carrying = replace(chain, needs=tuple(map(frozenset, needs)))

    def is_on_disk(left_bytes: int) -> bool:
        make, every = place_states(
            carrying, [call], residence, tmp_path, "cpu", left_bytes,
            build(**words).objective == "output",
        )  # fmt: skip
        assert every == 1
        states = make(1)
        states.close()
        return isinstance(states, StatesOnDisk)

    assert not is_on_disk(num_states * ONE)
    assert is_on_disk(num_states * ONE - 1)


def test_a_disk_with_less_room_keeps_fewer_and_one_with_too_little_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deeper(Denoiser):
        depth = 9

    denoiser, call = Deeper(), Call((), {"x": noise(2, TOKENS, WIDTH), "t": noise(2)})
    residence = InMemory(denoiser)
    chain = find_chain(denoiser, [f"blocks.{i}" for i in range(9)], [call], residence)
    assert isinstance(chain, Chain)

    def every(num_free: int) -> int:
        free = type("", (), {"free": num_free * ONE})()
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _place: free)
        return place_states(chain, [call], residence, tmp_path, "cpu", ONE, True)[1]

    assert [every(10), every(9), every(8), every(7)] == [1, 2, 2, 3]
    with pytest.raises(RecipeError, match="free some"):
        every(6)
