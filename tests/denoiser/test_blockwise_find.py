"""`find_chain`: which denoisers run block by block, and why others do not."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foreign_builds
import tiny_denoisers
from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import InMemory
from ditprune.targets.blocks import find_blocks
from foreign_builds import TOKENS, WIDTH, Block, Denoiser, noise

NEEDS_MORE = "a block needs more than the block before it gives"
FAMILIES_WITHOUT = {
    "Flux3Transformer2DModel": "a call does not reach mode_blocks.image_cond.0",
    "LTX2VideoDiffusionDecoderModel": NEEDS_MORE,
}
BUILDS_WITHOUT = {
    "arguments_that_are_written_into": "what lies before blocks.0 writes into what it gets",
    "rows_of_unlike_lengths": "a block runs more than once in a call",
    "nothing_but_text_out": "it does not run with stand-ins for its blocks (the denoiser returns "
    "str without a floating tensor; expected the predicted noise)",
    "lists_of_lists": "a call does not reach blocks.0",
    "mappings_in_a_list": "a call does not reach blocks.0",
}


def found_in(denoiser: nn.Module, calls: list[Any]) -> Chain | str:
    blocks = [block.path for block in find_blocks(denoiser) if not block.auxiliary]
    return find_chain(denoiser, blocks, [Call.of(call) for call in calls], InMemory(denoiser))


def without_chain(made: Iterator[tuple[str, nn.Module, list[Any]]]) -> dict[str, str]:
    """Prints how many chain, and gives the others with their reasons."""
    found = {name: found_in(denoiser, calls) for name, denoiser, calls in made}
    others = {name: why for name, why in found.items() if isinstance(why, str)}
    print(f"{len(found) - len(others)} of {len(found)} run block by block")
    return others


def test_which_classes_of_diffusers_chain() -> None:
    names = tiny_denoisers.exported(tiny_denoisers.FAMILIES)
    families = [tiny_denoisers.FAMILIES[name] for name in names]
    made = ((f.name, f.make(), [f.call(tiny_denoisers.Draw(0))]) for f in families)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        others = without_chain(made)
    assert others == {name: FAMILIES_WITHOUT[name] for name in names if name in FAMILIES_WITHOUT}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_which_foreign_builds_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Denoiser, "depth", 3)
    assert (
        without_chain((n, *make()) for n, make in foreign_builds.BUILDS.items()) == BUILDS_WITHOUT
    )


# --- What chains, however it is written ---


class Steady(Denoiser):
    depth = 3


def call_of(rows: int = 2, time: float = 0.5, tokens: int = TOKENS) -> dict[str, Any]:
    return {"x": noise(rows, tokens, WIDTH), "t": torch.full((rows,), time)}


def trunk_of(run: Callable[[nn.ModuleList, Tensor, Tensor], Tensor], **layers: Any) -> nn.Module:
    """A denoiser of three blocks that are run by a function of the blocks, the tokens, the time."""

    class Build(Steady):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.head(run(self.blocks, x + t[:, None, None], t))

    built = Build()
    for name, layer in layers.items():
        setattr(built, name, layer)
    return built


class TwoStreams(nn.Module):
    """Two streams in and out, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = Block(), Block()

    def forward(self, *, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.text(text) + image.mean(), self.image(image) + text.mean()


class Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TwoStreams() for _ in range(3)])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            y, x = block(text=y, image=x)
        return x


@pytest.mark.parametrize("lengths", [(6, 6), (6, 4)])
def test_streams_of_one_length_in_a_first_call_and_of_two_in_a_second_chain(
    lengths: tuple[int, int],
) -> None:
    calls = [{"x": noise(1, n, WIDTH), "y": noise(1, m, WIDTH)} for n, m in (lengths, (3, 5))]
    assert isinstance(found_in(Streams(), calls), Chain)


def test_calls_of_two_forms_chain_together() -> None:
    class Build(Steady):
        def forward(self, x: Tensor, t: Tensor, more: Tensor | None = None) -> Tensor:
            return super().forward(x if more is None else x + more, t)

    calls = [call_of(), call_of() | {"more": noise(1, 1, WIDTH)}]
    assert isinstance(found_in(Build(), calls), Chain)


def test_a_forward_that_catches_exceptions_chains() -> None:
    def run(blocks: nn.ModuleList, h: Tensor, t: Tensor) -> Tensor:
        for block in blocks:
            try:
                h = block(h)
            except Exception:
                h = h * 0
        return h

    assert isinstance(found_in(trunk_of(run), [call_of()]), Chain)


class Meeting(nn.Module):
    """Two lists of refiners whose ends meet in the first block of the trunk, or in all of them."""

    def __init__(self, is_needed_by_all: bool) -> None:
        super().__init__()
        self.is_needed_by_all = is_needed_by_all
        self.texts = nn.ModuleList([Block(), Block()])
        self.noises = nn.ModuleList([Block(), Block()])
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.texts:
            y = block(y)
        for block in self.noises:
            x = block(x)
        for number, block in enumerate(self.blocks):
            x = block(x + y if self.is_needed_by_all or not number else x)
        return x


@pytest.mark.parametrize("is_needed_by_all", [False, True])
def test_what_later_blocks_need_is_carried_as_far_as_they_need_it(is_needed_by_all: bool) -> None:
    call = {"x": noise(1, TOKENS, WIDTH), "y": noise(1, TOKENS, WIDTH)}
    chain = found_in(Meeting(is_needed_by_all), [call])
    assert isinstance(chain, Chain)
    live = [set(chain.live(number)) for number in range(7)]
    end = [{1, 4}, {1, 5}, {6}] if is_needed_by_all else [{4}, {5}, {6}]
    assert live == [{0}, {1}, {1, 2}, {1, 3}, *end]


def skipping(depth: int) -> nn.Module:
    """Each block of the second half takes what one of the first half gave, the last first."""

    class Build(Denoiser):
        def trunk(self, h: Tensor) -> Tensor:
            skips = []
            for number, block in enumerate(self.blocks):
                h = block(h if number < depth // 2 else h + skips.pop())
                skips += [h] if number < depth // 2 else []
            return self.head(h)

    Build.depth = depth
    return Build()


def test_long_skips_are_carried_where_they_are_few() -> None:
    chain = found_in(skipping(6), [call_of()])
    assert isinstance(chain, Chain)
    assert [len(chain.live(number)) for number in range(6)] == [1, 2, 3, 3, 2, 1]
    assert found_in(skipping(24), [call_of()]) == NEEDS_MORE


# --- What does not chain ---


def _skip_late(blocks: nn.ModuleList, h: Tensor, t: Tensor) -> Tensor:
    first = blocks[0](h)
    second = blocks[1](first)
    return blocks[2](second + first if t[0] > 0.5 else second)


def _skip_block_late(blocks: nn.ModuleList, h: Tensor, t: Tensor) -> Tensor:
    return blocks[2](blocks[0](h) if t[0] > 0.5 else blocks[1](blocks[0](h)))


def _write_into(blocks: nn.ModuleList, h: Tensor, t: Tensor) -> Tensor:
    for block in blocks:
        h = block(h).add_(1)
    return h


def _dropout(blocks: nn.ModuleList, h: Tensor, t: Tensor) -> Tensor:
    for block in blocks:
        h = nn.functional.dropout(block(h))
    return h


def _nothing_floating(blocks: nn.ModuleList, h: Tensor, t: Tensor) -> Tensor:
    return blocks[2](blocks[1](blocks[0](h))) * float("nan")


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (_skip_late, NEEDS_MORE),
        (_skip_block_late, "does not reach blocks.1"),
        (_write_into, "what lies before blocks.1 writes into what it gets"),
        (_dropout, NEEDS_MORE),
        (_nothing_floating, NEEDS_MORE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_way_of_running_is_seen(run: Any, why: str) -> None:
    times = (0.2, 0.4, 0.9)  # the last call tells what the first does not
    assert why in found_in(trunk_of(run), [call_of(time=time) for time in times])


class Counting(Block):
    """It answers another way from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, h: Tensor) -> Tensor:
        self.count += 1
        return super().forward(h) + self.count


class Writing(Block):
    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h.mul_(2))


class Narrowing(Block):
    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h)[:, 1:]


Pair = collections.namedtuple("Pair", "tokens")


class Naming(Block):
    def forward(self, h: Any) -> Any:
        return Pair(super().forward(getattr(h, "tokens", h)))


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (Counting, NEEDS_MORE),
        (Writing, "blocks.0 writes into its inputs"),
        (Narrowing, f"blocks.0 gives [2, {TOKENS - 1}, {WIDTH}], and no input is as large"),
        (Naming, "blocks.0 gives Pair"),
    ],
)
def test_blocks_that_cannot_be_stood_in_for_are_seen(block: type[Block], why: str) -> None:
    class Build(Steady):
        def trunk(self, h: Any) -> Tensor:
            for block in self.blocks:
                h = block(h)
            return self.head(getattr(h, "tokens", h))

    Build.block = block
    assert why == found_in(Build(), [call_of()])


def test_a_block_that_is_twice_in_the_list_is_seen() -> None:
    denoiser = Steady()
    denoiser.blocks[2] = denoiser.blocks[0]
    assert "more than once" in found_in(denoiser, [call_of()])


def test_whatever_a_forward_raises_with_stand_ins_is_a_reason() -> None:
    def run(blocks: nn.ModuleList, h: Tensor, t: Tensor) -> Tensor:
        for block in blocks:
            before, h = h, block(h)
            if torch.equal(before, h):
                raise AssertionError("a block did nothing")
        return h

    why = found_in(trunk_of(run), [call_of()])
    assert why == "it does not run with stand-ins for its blocks (a block did nothing)"


def test_no_calls_is_a_reason() -> None:
    assert found_in(Steady(), []) == "there are no calls"


def test_no_stand_in_stays_after_an_error() -> None:
    denoiser = Steady()
    denoiser.blocks[1].forward = denoiser.blocks[1].forward  # as accelerate's hooks do
    before = denoiser.blocks[1].forward
    chain = found_in(denoiser, [call_of()])
    assert isinstance(chain, Chain)
    with pytest.raises(TypeError):
        chain.enter(2, Call((), {}), noise(1, 1, 3))
    with pytest.raises(TypeError):
        chain.leave(Call((), {}), None)
    assert [vars(block).get("forward") for block in denoiser.blocks] == [None, before, None]
