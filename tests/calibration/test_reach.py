"""Layers that run in vain are named, others never, and nothing is left changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ditprune.calibration.reach import unused
from ditprune.errors import ModelError

NAMES = ("first", "second", "third")


class Denoiser(nn.Module):
    """Three layers, run as `use` says."""

    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in NAMES:
            layer = nn.Linear(6, 6)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(6, 6, generator=generator))
            self.add_module(name, layer)
        self.use = use

    def forward(self, x: Tensor, **others: Any) -> Any:
        return self.use(self, x, **others)


def unused_by(use: Callable[..., Any], **others: Any) -> tuple[str, ...]:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    return unused(Denoiser(use), {"x": x, **others}, NAMES)


def test_a_branch_that_is_computed_and_dropped_runs_in_vain() -> None:
    def use(d: Denoiser, x: Tensor) -> Tensor:
        image, text = x[:, :3], x[:, 3:]
        d.third(d.second(text))
        return d.first(image)

    assert unused_by(use) == ("second", "third")


def test_a_layer_that_is_never_called_does_not_run_in_vain() -> None:
    assert unused_by(lambda d, x: d.first(x)) == ()


def test_one_use_of_several_is_enough() -> None:
    def use(d: Denoiser, x: Tensor) -> Tensor:
        d.first(x)
        y = d.first(x)
        d.first(2 * x)
        return y

    assert unused_by(use) == ()


def test_what_reaches_the_output_without_gradients_is_not_named() -> None:
    def use(d: Denoiser, x: Tensor) -> Tensor:
        chosen = d.first(x).argmax(dim=-1, keepdim=True)
        detached = d.second(x).detach()
        d.third(x)
        return x.gather(-1, chosen) + detached

    assert unused_by(use) == ("third",)


def test_a_layer_run_without_gradients_is_never_named() -> None:
    def use(d: Denoiser, x: Tensor) -> Tensor:
        d.second(x)
        d.third(x)
        with torch.no_grad():
            d.first(x)
            d.second(x)
        return x

    assert unused_by(use) == ("third",)


def test_what_is_written_into_an_argument_counts_as_output() -> None:
    class Cache:
        def __init__(self) -> None:
            self.keys: list[Tensor] = []

    def use(d: Denoiser, x: Tensor, cache: Cache, kept: dict[str, list[Tensor]]) -> Tensor:
        cache.keys.append(d.first(x))
        kept["here"].append(d.second(x))
        d.third(x)
        return x

    cache, kept = Cache(), {"here": []}
    assert unused_by(use, cache=cache, kept=kept) == ("third",)
    assert cache.keys == kept["here"] == []  # the caller's own stay as they were


def test_the_model_may_write_into_what_a_layer_gives() -> None:
    def use(d: Denoiser, x: Tensor) -> Tensor:
        d.second(x).relu_()
        y = d.first(x)
        y[..., :3] *= 2
        return y.relu_()

    assert unused_by(use) == ("second",)


def test_a_scale_and_a_shift_would_not_tell_but_noise_does() -> None:
    def use(d: Denoiser, x: Tensor) -> Tensor:
        """A path without gradients behind a normalisation."""
        return nn.functional.layer_norm(d.first(x), (6,)).detach()

    assert unused_by(use) == ()


@pytest.mark.parametrize("own_generator", [True, False])
def test_a_call_that_draws_noise_draws_the_same_each_time(own_generator: bool) -> None:
    def use(d: Denoiser, x: Tensor, generator: torch.Generator | None) -> Tensor:
        d.second(x)
        return d.first(x) + torch.randn(x.shape, generator=generator)

    denoiser = Denoiser(use)
    generator = torch.Generator().manual_seed(4) if own_generator else None
    state = generator.get_state() if own_generator else torch.get_rng_state()
    call = {"x": torch.ones(2, 5, 6), "generator": generator}
    assert unused(denoiser, call, NAMES) == ("second",)
    after = generator.get_state() if own_generator else torch.get_rng_state()
    assert torch.equal(after, state)


def test_a_denoiser_that_is_not_deterministic_has_none_named() -> None:
    count = iter(range(100))

    def use(d: Denoiser, x: Tensor) -> Tensor:
        d.second(x)
        return d.first(x) + next(count)

    assert unused_by(use) == ()


@dataclass
class Output:
    sample: Tensor


@pytest.mark.parametrize(
    "wrap", [lambda y: y, lambda y: (None, y), lambda y: {"sample": [y]}, Output]
)
def test_the_output_may_be_wrapped_in_anything(wrap: Callable[[Tensor], Any]) -> None:
    def use(d: Denoiser, x: Tensor) -> Any:
        d.second(x)
        return wrap(d.first(x))

    assert unused_by(use) == ("second",)


@pytest.mark.parametrize("output", [None, 3.5, [], "noise"])
def test_an_output_without_tensors_is_refused(output: Any) -> None:
    with pytest.raises(ModelError, match="Denoiser: its output holds no tensor"):
        unused_by(lambda d, x: output)


@pytest.mark.parametrize(
    "use",
    [
        lambda d, x: torch.from_numpy(d.first(x).numpy()),
        lambda d, x: d.first(x).chunk(2, dim=-1)[0].mul_(2),
    ],
)
def test_operators_that_refuse_gradients_are_named(use: Callable[..., Tensor]) -> None:
    with pytest.raises(ModelError, match=r"Denoiser: its call runs, but not with gradients"):
        unused_by(use)


def test_a_call_that_cannot_run_says_so_itself() -> None:
    with pytest.raises(RuntimeError, match="must match the size") as caught:
        unused_by(lambda d, x: d.first(x) + torch.zeros(4))
    assert not isinstance(caught.value, ModelError)


def state_of(denoiser: nn.Module) -> list[Any]:
    modules = [
        (m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in denoiser.modules()
    ]
    return [*modules, *((p.requires_grad, p.grad is None) for p in denoiser.parameters())]


@pytest.mark.parametrize("fails", [True, False])
def test_the_denoiser_is_left_as_it_was(fails: bool) -> None:
    def use(d: Denoiser, x: Tensor) -> Tensor:
        assert not d.training
        d.second(x)
        if fails:
            raise OSError("no more")
        return d.first(x)

    denoiser = Denoiser(use)
    denoiser.third.eval()
    denoiser.second.weight.requires_grad_(False)
    before, weights = state_of(denoiser), {n: p.clone() for n, p in denoiser.named_parameters()}
    x = torch.ones(1, 2, 6)
    if fails:
        with pytest.raises(OSError, match="no more"):
            unused(denoiser, {"x": x}, NAMES)
    else:
        assert unused(denoiser, {"x": x}, NAMES) == ("second",)
    assert state_of(denoiser) == before
    assert all(torch.equal(p, weights[n]) for n, p in denoiser.named_parameters())
    assert torch.equal(x, torch.ones(1, 2, 6))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("inference", [True, False])
def test_a_gate_of_zero_is_no_dead_end(inference: bool) -> None:
    """As in a fresh DiT; a path leads on, in the inference mode of a caller too."""

    def use(d: Denoiser, x: Tensor) -> Tensor:
        d.second(x)
        return x + 0 * d.first(x)

    denoiser = Denoiser(use)
    with torch.inference_mode(inference):
        assert unused(denoiser, {"x": torch.ones(1, 2, 6)}, NAMES) == ("second",)


def test_the_graph_keeps_no_activation() -> None:
    """As many as a plain forward keeps, whatever the depth."""
    alive: list[int] = []

    def use(d: Denoiser, x: Tensor) -> Tensor:
        activations = []
        for _ in range(8):
            y = d.first(x)
            activations.append(weakref.ref(y))
            x = y * y
        alive.append(sum(activation() is not None for activation in activations))
        return x

    assert unused_by(use) == ()
    assert alive == [1]
