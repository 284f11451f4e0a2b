"""Going through the blocks of a denoiser, forwards and backwards, in memory and from disk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_denoisers
from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import InMemory, OnDisk, Residence
from ditprune.denoiser.blockwise.states import States, StatesOnDisk, tree_bytes
from ditprune.denoiser.blockwise.sweep import Make, backwards, forwards, trace
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import predicted, run_call
from ditprune.targets.blocks import find_blocks
from ditprune.targets.discover import discover

DIT, FLUX, SANA = "DiTTransformer2DModel", "FluxTransformer2DModel", "SanaTransformer2DModel"
SD3, WAN = "SD3Transformer2DModel", "WanTransformer3DModel"
LUMINA, KANDINSKY = "Lumina2Transformer2DModel", "Kandinsky5Transformer3DModel"
HUNYUAN, VACE = "HunyuanDiT2DModel", "WanVACETransformer3DModel"  # blocks that need earlier ones


def blocks_of(denoiser: nn.Module) -> list[str]:
    return [block.path for block in find_blocks(denoiser) if not block.auxiliary]


def calls_of(name: str, count: int = 2) -> list[Call]:
    family = tiny_denoisers.FAMILIES[name]
    return [Call((), family.call(tiny_denoisers.Draw(i))) for i in range(count)]


def chained(residence: Residence, denoiser: nn.Module, calls: list[Call]) -> Chain:
    chain = find_chain(denoiser, blocks_of(denoiser), calls, residence)
    assert isinstance(chain, Chain), chain
    return chain


def opened(
    name: str, where: str, folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Residence, Make]:
    """A tiny denoiser of diffusers that lies in memory or on disk, and where states are kept."""
    made = tiny_denoisers.FAMILIES[name].make()
    if where == "memory":
        return made.to(dtype), InMemory(made), States
    made.save_pretrained(folder)
    on_disk = OnDisk(folder, blocks_of(made), Placement(dtype=dtype))
    return on_disk.denoiser, on_disk, partial(StatesOnDisk, device="cpu", folder=folder)


def in_half(calls: list[Call], dtype: torch.dtype) -> list[Call]:
    def cast(leaf: Any) -> Any:
        is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if is_floating else leaf

    return [call.map(cast) for call in calls]


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [DIT, FLUX, SD3, LUMINA])
def test_what_the_blocks_predict_is_what_the_denoiser_predicts(
    name: str, dtype: torch.dtype, where: str, tmp_path: Path
) -> None:
    denoiser, residence, make = opened(name, where, tmp_path, dtype)
    calls = in_half(calls_of(name), dtype)
    chain = chained(residence, denoiser, calls)
    states = trace(chain, calls, residence, make)
    for number, call in enumerate(calls):
        with residence.running():
            whole = predicted(run_call(denoiser, call), call)
        with torch.no_grad():
            ((_, got),) = predicted(chain.leave(call, states[len(chain.blocks) - 1][number]), call)
        assert torch.equal(got, whole[0][1])
    for number in range(len(chain.blocks)):
        states.close(number)


@pytest.mark.parametrize("name", [DIT, LUMINA])
def test_a_change_of_a_block_does_not_reach_the_next_and_its_own_outputs_do(name: str) -> None:
    denoiser = tiny_denoisers.FAMILIES[name].make()
    calls, residence = calls_of(name), InMemory(denoiser)
    chain = chained(residence, denoiser, calls)
    dense = [
        [entered.args[0] for entered in s.entered()] for s in forwards(chain, calls, residence)
    ]
    for step, expected in zip(forwards(chain, calls, residence), dense, strict=True):
        assert all(map(torch.equal, (entered.args[0] for entered in step.entered()), expected))
        step.advance()
        given = step.block(*next(step.entered()).args, **next(step.entered()).kwargs)
        assert all(map(torch.equal, leaves(step.given(0)), leaves(given)))
        step.block.requires_grad_(False)
        for parameter in step.block.parameters():
            parameter.zero_()


# --- Gradients ---


def _signed(seed: int) -> Callable[[Any, Call], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def signed(output: Any, call: Call) -> Tensor:
        ((_, tensor),) = predicted(output, call)
        return (tensor * torch.randn(tensor.shape, generator=generator)).sum()

    return signed


@contextmanager
def output_gradients(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """The gradients of what each layer gives, call by call."""
    gradients: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(name: str) -> Callable[..., Tensor]:
        def hook(_layer: nn.Module, _args: Any, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            output.register_hook(lambda gradient: gradients[name].append(gradient.clone()))
            return output

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    yield gradients
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("name", [DIT, FLUX, SANA, SD3, WAN, LUMINA, KANDINSKY, HUNYUAN, VACE])
def test_gradients_block_by_block_are_those_of_a_backward_pass(
    name: str, where: str, tmp_path: Path
) -> None:
    calls, whole = calls_of(name), tiny_denoisers.FAMILIES[name].make()
    targets, signed = discover(whole), _signed(0)
    with output_gradients({n: whole.get_submodule(n) for n in targets}) as expected:
        for call in calls:
            signed(whole(**call.kwargs), call).backward()
    denoiser, residence, make = opened(name, where, tmp_path)
    chain = chained(residence, denoiser, calls)
    states, seen = trace(chain, calls, residence, make), []
    with output_gradients({n: denoiser.get_submodule(n) for n in targets}) as gradients:
        for step in backwards(chain, calls, residence, states, _signed(0)):
            step.run(seen.append)
    assert seen == calls * len(chain.blocks)
    assert sum(map(len, gradients.values())) > len(targets)
    for target in targets:
        assert len(gradients[target]) == len(expected[target]), target
        for got, right in zip(gradients[target], expected[target], strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    assert where == "disk" or all(parameter.requires_grad for parameter in denoiser.parameters())


# --- Weights on disk ---


def loaded_bytes(denoiser: nn.Module, blocks: list[str]) -> int:
    layers = (denoiser.get_submodule(path) for path in blocks)
    weights = (weight for layer in layers for weight in layer.parameters())
    return sum(weight.nbytes for weight in weights if not weight.is_meta)


def test_one_block_at_a_time_is_in_memory(tmp_path: Path) -> None:
    denoiser, residence, make = opened(FLUX, "disk", tmp_path)
    calls, blocks = calls_of(FLUX), blocks_of(denoiser)
    chain, before = chained(residence, denoiser, calls), None

    def check(path: str, block: nn.Module) -> Any:
        assert before is None or before() is None
        assert loaded_bytes(denoiser, blocks) == loaded_bytes(denoiser, [path]) > 0
        return weakref.ref(next(block.parameters()))

    assert loaded_bytes(denoiser, blocks) == 0
    for step in forwards(chain, calls, residence, make):
        before = check(step.path, step.block)
        step.advance()
    states = trace(chain, calls, residence, make)
    assert loaded_bytes(denoiser, blocks) == 0
    for back in backwards(chain, calls, residence, states, _signed(0)):
        before = check(back.path, back.block)
        back.run()
    assert loaded_bytes(denoiser, blocks) == 0
    assert before() is None


@pytest.mark.parametrize("every", [2, 3])
def test_a_trace_with_gaps_fills_them_anew_on_the_way_back(every: int, tmp_path: Path) -> None:
    denoiser, residence, _ = opened(FLUX, "disk", tmp_path)
    blocks, calls, gradients = blocks_of(denoiser), calls_of(FLUX), []
    chain = chained(residence, denoiser, calls)
    for number_of in (1, every):
        made: list[States] = []

        def make(count: int, made: list[States] = made) -> States:
            made.append(States(count))
            return made[-1]

        def num_open(made: list[States] = made) -> int:
            return sum(tree_bytes(states._trees) > 0 for states in made)

        states = trace(chain, calls, residence, make, every=number_of)
        assert num_open() == -(-len(blocks) // number_of)
        for step in backwards(chain, calls, residence, states, _signed(0)):
            assert loaded_bytes(denoiser, blocks) == loaded_bytes(denoiser, [step.path])
            assert num_open() <= -(-len(blocks) // number_of) + number_of - 1
            step.run()
            gradients.append([leaf.clone() for row in step.gradients for leaf in row])
        assert num_open() == 0
    half = len(blocks)
    for first, second in zip(gradients[:half], gradients[half:], strict=True):
        assert all(map(torch.equal, first, second))


def test_states_of_two_blocks_are_open_at_once_going_forwards() -> None:
    denoiser = tiny_denoisers.FAMILIES[FLUX].make()
    calls, residence, made = calls_of(FLUX), InMemory(denoiser), []

    def make(count: int) -> States:
        made.append(States(count))
        return made[-1]

    for _ in forwards(chained(residence, denoiser, calls), calls, residence, make):
        assert sum(tree_bytes(states._trees) > 0 for states in made) <= 1
    assert len(made) == 4
    assert not any(tree_bytes(states._trees) for states in made)


def test_an_error_inside_a_block_leaves_nothing_loaded_and_no_stand_in(tmp_path: Path) -> None:
    denoiser, residence, _ = opened(DIT, "disk", tmp_path)
    calls, blocks = calls_of(DIT), blocks_of(denoiser)
    chain = chained(residence, denoiser, calls)

    def fail(*_: Any) -> None:
        raise RuntimeError("an error inside")

    layer = denoiser.get_submodule(blocks[1]).attn1
    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="an error inside"):
        trace(chain, calls, residence)
    with pytest.raises(RuntimeError, match="an error inside"), residence.running():
        run_call(denoiser, calls[0])
    handle.remove()
    assert loaded_bytes(denoiser, blocks) == 0
    assert not any("forward" in vars(module) for module in denoiser.modules())
    assert trace(chain, calls, residence)


def test_dtypes_on_disk_are_those_that_diffusers_loads(tmp_path: Path) -> None:
    """Some layers of Wan stay in float32."""
    denoiser, residence, _ = opened(WAN, "disk", tmp_path, torch.bfloat16)
    loaded = type(denoiser).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    expected = {
        n: tensor.dtype for n, tensor in (*loaded.named_parameters(), *loaded.named_buffers())
    }
    assert set(expected.values()) == {torch.float32, torch.bfloat16}
    for path in blocks_of(denoiser):
        with residence.resident(path) as block:
            for name, parameter in block.named_parameters(prefix=path):
                assert parameter.dtype == expected[name], name
                assert torch.equal(parameter, loaded.get_parameter(name))
    call = in_half(calls_of(WAN, 1), torch.bfloat16)[0]
    with residence.running():
        ((_, got),) = predicted(run_call(denoiser, call), call)
    ((_, right),) = predicted(run_call(loaded, call), call)
    assert torch.equal(got, right)


def test_blocks_under_hooks_of_accelerate_run() -> None:
    from accelerate import cpu_offload

    denoiser = tiny_denoisers.FAMILIES[SD3].make()
    calls = calls_of(SD3)
    residence = InMemory(denoiser)
    last = len(blocks_of(denoiser)) - 1
    expected = trace(chained(residence, denoiser, calls), calls, residence)[last][0]
    cpu_offload(denoiser)
    given = trace(chained(residence, denoiser, calls), calls, residence)[last][0]
    assert all(map(torch.equal, leaves(given), leaves(expected)))


def test_blocks_that_share_layers_chain() -> None:
    denoiser, calls = tiny_denoisers.FAMILIES[DIT].make(), calls_of(DIT, 1)
    denoiser.transformer_blocks[1].attn1 = denoiser.transformer_blocks[0].attn1
    assert isinstance(chained(InMemory(denoiser), denoiser, calls), Chain)


# --- States ---


def leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in Call((tree,)).leaves() if isinstance(leaf, Tensor)]


DTYPES = [
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64,
    torch.int32, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


@pytest.mark.parametrize("make", [States, StatesOnDisk])
def test_states_keep_every_bit(make: type[States], tmp_path: Path) -> None:
    more = {} if make is States else {"device": "cpu", "folder": tmp_path}
    values = torch.arange(-12.0, 12.0).reshape(4, 6) / 3
    trees: list[Any] = [
        tuple(values.to(dtype) for dtype in DTYPES),
        [torch.tensor(-0.0), torch.tensor(True), torch.empty(0, 3), None],
        values.t(),
        (values[:, ::2], {"expanded": values[:1].expand(3, 6), "text": None}),
        values.requires_grad_(False)[1],
    ]
    states = make(len(trees), **more)
    for number, tree in enumerate(trees):
        states[number] = tree
    assert list(tmp_path.iterdir()) == []  # a file without a name stays after no kill
    for number in (3, 0, 4, 1, 2):
        tree, got = trees[number], states[number]
        assert type(got) is type(tree)
        for first, second in zip(leaves(got), leaves(tree), strict=True):
            assert (first.dtype, first.shape) == (second.dtype, second.shape)
            assert first.contiguous().view(-1).tolist() == second.contiguous().view(-1).tolist()
            assert bits(first) == bits(second)
    states[0] = trees[2]
    assert torch.equal(states[0], trees[2])
    states.close()


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_states_on_disk_keep_what_a_later_write_changes(tmp_path: Path) -> None:
    tensor = torch.ones(3, requires_grad=True)
    states = StatesOnDisk(1, "cpu", tmp_path)
    states[0] = tensor * 2
    assert not states[0].requires_grad
    states[0].zero_()
    assert states[0].tolist() == [2, 2, 2]
    states.close()
