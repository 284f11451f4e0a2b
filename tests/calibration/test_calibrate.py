"""Calibration sees exactly what enters each layer, shares what is the same, and leaves no trace."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ditprune import calibrate, prune_
from ditprune.calls import Call
from ditprune.checkpoints.merge_statistics import merge_statistics
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.denoiser.replay import predicted_noise, run_call
from ditprune.errors import DitpruneError, ModelError, RecipeError, StatisticsError
from ditprune.method.statistics.column_norm import ColumnNorm
from ditprune.targets.discover import discover


class Block(nn.Module):
    """Query, key and value, run as `use` says."""

    def __init__(self, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(6, 6) for _ in range(3))
        self.use = use

    def forward(self, x: Tensor, memory: Tensor | None) -> Tensor:
        return self.use(self, x, memory)


class Denoiser(nn.Module):
    """One block; its input is copied so that a block may write in place."""

    def __init__(self, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(use)])

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        return self.blocks[0](x.clone(), memory)


def tokens(seed: int, num_tokens: int = 11) -> Tensor:
    return torch.randn(1, num_tokens, 6, generator=torch.Generator().manual_seed(seed))


def norm_of(*inputs: Tensor) -> Tensor:
    """The definition: ℓ2 norm over all tokens, stacked, in float64."""
    stacked = torch.cat([one.detach().double().reshape(-1, one.shape[-1]) for one in inputs])
    return stacked.square().sum(0).sqrt().float()


def check(stats: Statistics, leaf: str, *inputs: Tensor) -> None:
    name = f"blocks.0.{leaf}"
    torch.testing.assert_close(stats.column_norm(name), norm_of(*inputs), rtol=1e-6, atol=0)
    assert stats.num_tokens(name) == sum(one[..., 0].numel() for one in inputs)


def captured_inputs(denoiser: nn.Module, calls: list[dict[str, Any]]) -> dict[str, list[Tensor]]:
    """Copies of what enters each target, by hooks of the test's own."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: seen[name].append(args[0].clone())
        )
        for name in discover(denoiser)
    ]
    with torch.no_grad():
        for call in calls:
            denoiser(**call)
    for handle in handles:
        handle.remove()
    return seen


def num_hooks(denoiser: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in denoiser.modules()
        for name, hooks in vars(module).items()
        if name.endswith(("_hooks", "_hooks_with_kwargs")) and hooks
    )


def assert_same(first: Statistics, second: Statistics) -> None:
    assert first.fingerprints == second.fingerprints
    assert first.num_calls == second.num_calls
    assert list(first.column_norms) == list(second.column_norms)
    for name in first.column_norms:
        assert first.num_tokens(name) == second.num_tokens(name)
        torch.testing.assert_close(
            first.column_norm(name), second.column_norm(name), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("family", ["tiny_dit", "original_dit"])
def test_norms_are_those_of_the_inputs_laid_end_to_end(family: str, request, batches) -> None:
    denoiser = request.getfixturevalue(family)()
    calls = batches(denoiser, 4)
    stats = calibrate(denoiser, calls)
    seen = captured_inputs(denoiser, calls)
    assert list(stats.column_norms) == list(discover(denoiser))
    assert stats.num_calls == 4
    assert stats.never_called == ()
    for name, inputs in seen.items():
        torch.testing.assert_close(stats.column_norm(name), norm_of(*inputs), rtol=1e-6, atol=0)
        assert stats.num_tokens(name) == sum(one[..., 0].numel() for one in inputs)


def test_query_key_and_value_share_one_state_and_others_do_not(tiny_stats) -> None:
    for i in range(3):
        at = f"transformer_blocks.{i}."
        qkv = [tiny_stats.column_norms[f"{at}attn1.to_{leaf}"] for leaf in "qkv"]
        assert qkv[0] is qkv[1] is qkv[2]
    assert len({id(state) for state in tiny_stats.column_norms.values()}) == 21 - 3 * 2


def test_a_layer_called_twice_remembers_both() -> None:
    denoiser = Denoiser(lambda b, x, m: b.to_q(x) + b.to_q(3 * x) + b.to_k(x) + b.to_v(x))
    stats = calibrate(denoiser, [{"x": tokens(0)}, {"x": tokens(1)}])
    check(stats, "to_q", tokens(0), 3 * tokens(0), tokens(1), 3 * tokens(1))
    check(stats, "to_k", tokens(0), tokens(1))


def test_a_layer_called_twice_with_one_tensor_counts_it_twice() -> None:
    denoiser = Denoiser(lambda b, x, m: b.to_q(x) + b.to_q(x) + b.to_k(x) + b.to_v(x))
    stats = calibrate(denoiser, [{"x": tokens(0)}])
    check(stats, "to_q", tokens(0), tokens(0))
    check(stats, "to_k", tokens(0))


def test_sharing_ends_where_inputs_differ_in_a_later_call() -> None:
    def use(b: Block, x: Tensor, memory: Tensor | None) -> Tensor:
        return b.to_q(x) + b.to_k(x if memory is None else memory).sum(1, True) + b.to_v(x)

    calls = [{"x": tokens(0)}, {"x": tokens(1), "memory": tokens(2, 5)}, {"x": tokens(3)}]
    stats = calibrate(Denoiser(use), calls)
    check(stats, "to_q", tokens(0), tokens(1), tokens(3))
    check(stats, "to_v", tokens(0), tokens(1), tokens(3))
    check(stats, "to_k", tokens(0), tokens(2, 5), tokens(3))
    states = stats.column_norms
    assert states["blocks.0.to_q"] is states["blocks.0.to_v"]
    assert states["blocks.0.to_q"] is not states["blocks.0.to_k"]


def write_between(b: Block, x: Tensor, _memory: Tensor | None) -> Tensor:
    query = b.to_q(x)
    x.mul_(2)
    return query + b.to_k(x) + b.to_v(x)


def test_a_tensor_written_in_place_between_layers_is_seen_again() -> None:
    stats = calibrate(Denoiser(write_between), [{"x": tokens(0)}])
    check(stats, "to_q", tokens(0))
    check(stats, "to_k", 2 * tokens(0))


def test_a_tensor_written_in_place_in_inference_mode_is_seen_again() -> None:
    """Inference tensors have no version counter to tell that they changed."""
    with torch.inference_mode():
        stats = calibrate(Denoiser(write_between), [{"x": tokens(0)}])
    check(stats, "to_q", tokens(0))
    check(stats, "to_k", 2 * tokens(0))


def test_a_new_tensor_in_the_place_of_a_dead_one_is_new() -> None:
    """Temporaries reuse addresses, and with them Python's ids."""
    denoiser = Denoiser(lambda b, x, m: b.to_q(x + 1) + b.to_k(x + 2) + b.to_v(x + 3))
    stats = calibrate(denoiser, [{"x": tokens(seed)} for seed in range(5)])
    for leaf, more in (("to_q", 1), ("to_k", 2), ("to_v", 3)):
        check(stats, leaf, *[tokens(seed) + more for seed in range(5)])


def test_one_tensor_given_in_every_call_counts_in_every_call() -> None:
    denoiser = Denoiser(lambda b, x, memory: b.to_q(x) + b.to_k(memory) + b.to_v(memory))
    memory = tokens(9)
    stats = calibrate(denoiser, [{"x": tokens(seed), "memory": memory} for seed in range(3)])
    check(stats, "to_k", memory, memory, memory)


def test_memory_does_not_grow_with_the_calls() -> None:
    alive: list[int] = []

    def counting():
        for seed in range(5):
            alive.append(sum(type(one) is ColumnNorm for one in gc.get_objects()))
            yield {"x": tokens(seed)}

    gc.collect()  # what other tests left
    calibrate(Denoiser(lambda b, x, m: b.to_q(x) + b.to_k(x) + b.to_v(2 * x)), counting())
    assert alive[4] <= alive[2]


def test_inputs_given_by_name_are_seen() -> None:
    denoiser = Denoiser(lambda b, x, m: b.to_q(input=x) + b.to_k(x) + b.to_v(x))
    check(calibrate(denoiser, [{"x": tokens(0)}]), "to_q", tokens(0))


def test_no_hook_stays_and_modes_are_restored(tiny_dit, batches) -> None:
    denoiser = tiny_dit().train()
    denoiser.transformer_blocks[1].eval()
    modes = [module.training for module in denoiser.modules()]
    hooks = num_hooks(denoiser)
    calibrate(denoiser, batches(denoiser, 1))
    assert num_hooks(denoiser) == hooks
    assert [module.training for module in denoiser.modules()] == modes


@pytest.mark.parametrize("failing", ["forward", "batches", "kind of batch"])
def test_no_hook_stays_and_modes_are_restored_after_an_exception(
    failing: str, tiny_dit, batches
) -> None:
    denoiser = tiny_dit().train()
    denoiser.transformer_blocks[1].eval()
    modes = [module.training for module in denoiser.modules()]
    hooks = num_hooks(denoiser)

    def broken():
        yield batches(denoiser, 1)[0]
        if failing == "batches":
            raise RuntimeError("boom")
        yield {"hidden_states": torch.zeros(2, 4, 8, 8)} if failing == "forward" else 3

    with pytest.raises((RuntimeError, ModelError, ValueError, TypeError, AttributeError)):
        calibrate(denoiser, broken())
    assert num_hooks(denoiser) == hooks
    assert [module.training for module in denoiser.modules()] == modes


def test_the_counter_of_hooks_counts(tiny_dit) -> None:
    denoiser = tiny_dit()
    before = num_hooks(denoiser)
    denoiser.proj_out_2.register_forward_pre_hook(lambda *_: None)
    denoiser.proj_out_1.register_forward_hook(lambda *_: None, with_kwargs=True)
    assert num_hooks(denoiser) >= before + 2


def test_the_denoiser_runs_in_eval_mode_without_gradients() -> None:
    states: list[tuple[bool, bool]] = []

    def use(b: Block, x: Tensor, _memory: Tensor | None) -> Tensor:
        states.append((b.training, torch.is_grad_enabled()))
        return b.to_q(x) + b.to_k(x) + b.to_v(x)

    calibrate(Denoiser(use).train(), [{"x": tokens(0)}])
    assert states == [(False, True), (False, False)]  # who is used by whom is asked first
    assert torch.is_grad_enabled()


def test_batches_may_be_pairs_calls_or_come_from_a_generator(tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    calls = batches(denoiser, 3)
    expected = calibrate(denoiser, calls)
    pairs = [
        ((c["hidden_states"], c["timestep"]), {"class_labels": c["class_labels"]}) for c in calls
    ]
    assert_same(calibrate(denoiser, pairs), expected)
    lists = [([c["hidden_states"]], {k: c[k] for k in ("timestep", "class_labels")}) for c in calls]
    assert_same(calibrate(denoiser, lists), expected)
    ones = [(c["hidden_states"], {k: c[k] for k in ("timestep", "class_labels")}) for c in calls]
    assert_same(calibrate(denoiser, ones), expected)
    assert_same(calibrate(denoiser, (Call((), call) for call in calls)), expected)


def test_a_generator_may_run_the_denoiser_itself(tiny_dit, batches) -> None:
    """As one that samples lazily does; only the calls it hands over count."""
    denoiser = tiny_dit()
    calls = batches(denoiser, 3)

    def sampling():
        for call in calls:
            denoiser(**call)
            yield call

    assert_same(calibrate(denoiser, sampling()), calibrate(denoiser, calls))


def test_inference_mode_changes_nothing(tiny_dit, batches, tiny_stats) -> None:
    denoiser = tiny_dit()
    with torch.inference_mode():
        stats = calibrate(denoiser, batches(denoiser))
    assert_same(stats, tiny_stats)


def test_one_calibration_equals_several_merged(tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    calls = batches(denoiser, 5)
    merged = merge_statistics(calibrate(denoiser, calls[:2]), calibrate(denoiser, calls[2:]))
    whole = calibrate(denoiser, calls)
    assert_same(merged, whole)
    assert len({id(s) for s in merged.column_norms.values()}) == 15


def test_the_denoiser_and_the_batches_are_left_as_they_were(tiny_dit, batches, same_bits) -> None:
    denoiser, twin = tiny_dit(), tiny_dit()
    calls = batches(denoiser, 2)
    calibrate(denoiser, calls)
    for name, tensor in twin.state_dict().items():
        same_bits(denoiser.state_dict()[name], tensor)
    for call, same in zip(calls, batches(denoiser, 2), strict=True):
        for key in call:
            same_bits(call[key], same[key])


def test_the_protocol_is_kept(tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    assert calibrate(denoiser, batches(denoiser, 1), {"seed": 3}).protocol == {"seed": 3}


@pytest.mark.parametrize(
    ("nothing", "said"),
    [([], "no batches given"), ((), "no batches given"), (iter([]), "an iterator without items")],
)
def test_no_batches_are_refused(tiny_dit, nothing, said) -> None:
    with pytest.raises(DitpruneError, match=said):
        calibrate(tiny_dit(), nothing)


@pytest.mark.parametrize("batch", [3, torch.zeros(2), (1, 2, 3), [torch.zeros(2)]])
def test_a_batch_that_is_no_call_is_refused(tiny_dit, batch) -> None:
    kind = type(batch).__name__
    with pytest.raises(ModelError, match=f"batches: an item is {kind}, expected a dict"):
        calibrate(tiny_dit(), [batch])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_with_nan_or_inf_are_refused_by_the_layers_name(value: float) -> None:
    denoiser = Denoiser(lambda b, x, memory: b.to_q(x) + b.to_k(memory) + b.to_v(x))
    memory = tokens(1)
    memory[0, 3, 2] = value
    with pytest.raises(StatisticsError, match=r"blocks\.0\.to_k: .*NaN or Inf"):
        calibrate(denoiser, [{"x": tokens(0), "memory": memory}])


def test_a_layer_never_called_is_announced_and_stays_dense(same_bits) -> None:
    denoiser = Denoiser(lambda b, x, m: b.to_q(x) + b.to_k(x))
    with pytest.warns(UserWarning, match=r"1 of 3 targets were never called.*blocks\.0\.to_v"):
        stats = calibrate(denoiser, [{"x": tokens(0)}])
    assert stats.never_called == ("blocks.0.to_v",)
    assert "blocks.0.to_v" not in stats.column_norms
    before = denoiser.blocks[0].to_v.weight.detach().clone()
    outcome = prune_(denoiser, stats)
    assert set(outcome.targets) == {"blocks.0.to_q", "blocks.0.to_k"}
    assert outcome.skipped == {"blocks.0.to_v": "never called in calibration"}
    same_bits(denoiser.blocks[0].to_v.weight, before)


def test_a_call_that_is_run_again_gives_the_same_output(tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    calls = batches(denoiser, 2)
    with torch.no_grad():
        expected = [denoiser(**call).sample for call in calls]
    outputs = [predicted_noise(run_call(denoiser, call)) for call in calls]
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


def test_predicted_noise_is_found_in_any_output_and_without_the_variance() -> None:
    noise = tokens(0).reshape(1, 2, 33)
    both = torch.cat([noise, tokens(1).reshape(1, 2, 33)], dim=1)
    for output in (noise, (noise,), type("Output", (), {"sample": noise})()):
        torch.testing.assert_close(predicted_noise(output, 2), noise, rtol=0, atol=0)
    torch.testing.assert_close(predicted_noise((both,), 2), noise, rtol=0, atol=0)
    torch.testing.assert_close(predicted_noise(both), both, rtol=0, atol=0)


@pytest.mark.parametrize("num_bins", [1, 3, 10])
def test_norms_are_kept_for_as_many_bins_as_asked(num_bins, tiny_dit, batches) -> None:
    denoiser = tiny_dit()
    calls = [Call.of(batch) for batch in batches(denoiser, 6)]
    placed = [Call(c.args, c.kwargs, place=(i + 0.5) / 6) for i, c in enumerate(calls)]
    stats = calibrate(denoiser, placed, num_bins=num_bins)
    assert stats.num_bins == num_bins
    assert_same(stats, calibrate(denoiser, placed))
    state = stats.column_norms["transformer_blocks.0.attn1.to_q"]
    counts = [0] * (num_bins + 1)
    for call in placed:
        counts[int(call.place * num_bins)] += 2 * 16
    assert list(state.tokens_in_bin) == counts
    with pytest.raises(RecipeError, match="num_bins=0"):
        calibrate(denoiser, placed, num_bins=0)
