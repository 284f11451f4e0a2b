"""Sampling for calibration: even timesteps and labels, noise that belongs to items."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from ditprune import bundled
from ditprune.calibration.draw import conditions, draw, item_seed
from ditprune.calibration.sample import Sampling, sample_calls, sample_unit
from ditprune.calls import Call
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.rows import merge_calls, take_item
from ditprune.errors import ModelError, RecipeError


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline) -> Any:
    return load_pipeline(locate(str(tiny_pipeline)))


def calls_of(pipeline: Any, **options: Any) -> list[Call]:
    words = {"num_samples": 12, "num_inference_steps": 4, "guidance_scale": 1.0, **options}
    return sample_calls(pipeline, Sampling(**words))


def items_of(pipeline: Any, **options: Any) -> list[tuple[float, tuple[int, ...], Tensor]]:
    """(timestep, labels, rows of the sample) of every item, in order."""
    num_rows = 2 if options.get("guidance_scale", 1.0) > 1 else 1
    found = []
    for call in calls_of(pipeline, **options):
        sample, kwargs = call.sample(), call.kwargs
        assert sample.shape[0] % num_rows == 0
        for i in range(0, sample.shape[0], num_rows):
            rows = slice(i, i + num_rows)
            timestep = kwargs["timestep"].expand(sample.shape[0])[rows]
            assert len(set(timestep.tolist())) == 1
            labels = tuple(kwargs["class_labels"][rows].tolist())
            found.append((timestep[0].item(), labels, sample[rows]))
    return found


@pytest.mark.parametrize(("num_samples", "num_steps"), [(12, 4), (12, 12), (20, 5), (4, 4), (7, 3)])
def test_timesteps_are_covered_evenly(num_samples, num_steps, pipeline) -> None:
    items = items_of(pipeline, num_samples=num_samples, num_inference_steps=num_steps)
    assert len(items) == num_samples
    pipeline.scheduler.set_timesteps(num_steps)
    counts = Counter(timestep for timestep, _, _ in items)
    assert set(counts) == set(pipeline.scheduler.timesteps.tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_fewer_samples_than_steps_fall_one_in_each_stratum(pipeline) -> None:
    items = items_of(pipeline, num_samples=5, num_inference_steps=20)
    pipeline.scheduler.set_timesteps(20)
    steps = pipeline.scheduler.timesteps.tolist()
    assert sorted(steps.index(t) // 4 for t, _, _ in items) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("timesteps", "steps"), [("early", [0, 1, 2]), ("middle", [3, 4, 5]), ("late", [6, 7, 8])]
)
def test_early_middle_and_late_are_a_third_each(timesteps, steps, pipeline) -> None:
    items = items_of(pipeline, timesteps=timesteps, num_inference_steps=9)
    pipeline.scheduler.set_timesteps(9)
    expected = pipeline.scheduler.timesteps[steps].tolist()
    assert Counter(t for t, _, _ in items) == dict.fromkeys(expected, 4)


def test_fewer_samples_than_labels_are_spread_over_them(pipeline) -> None:
    items = items_of(pipeline, num_samples=4, labels=tuple(range(0, 80, 10)))
    assert sorted(labels for _, labels, _ in items) == [(0,), (20,), (40,), (60,)]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_an_item_is_the_same_in_every_batch_size(guidance_scale, pipeline) -> None:
    one, four, many = (
        items_of(pipeline, batch_size=size, guidance_scale=guidance_scale) for size in (1, 4, 16)
    )
    assert len(one) == len(four) == len(many) == 12
    for a, b, c in zip(one, four, many, strict=True):
        assert a[:2] == b[:2] == c[:2]
        # Another batch size sums in another order.
        torch.testing.assert_close(a[2], b[2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a[2], c[2], rtol=1e-4, atol=1e-4)
    assert len({item[2].sum().item() for item in one}) == 12


def test_the_noise_of_an_item_is_of_its_seed_alone(pipeline) -> None:
    items = items_of(pipeline, num_inference_steps=1)
    for number, (_, _, sample) in enumerate(items):
        seed = item_seed("calibration noise", 0, number)
        generator = torch.Generator().manual_seed(seed)
        torch.testing.assert_close(
            sample, torch.randn(1, 4, 8, 8, generator=generator), rtol=0, atol=0
        )


@pytest.mark.parametrize("other", [{"seed": 1}, {"purpose": "held-out"}], ids=str)
def test_another_seed_or_purpose_shares_no_noise(other, pipeline) -> None:
    one = items_of(pipeline, num_inference_steps=1)
    two = items_of(pipeline, num_inference_steps=1, **other)
    assert not any(torch.equal(a[2], b[2]) for a in one for b in two)
    labels = [[item[1] for item in items] for items in (one, two)]
    assert labels[0] != labels[1]


def test_seeds_are_told_apart_by_purpose_seed_and_item() -> None:
    purposes = ("calibration noise", "held-out noise", "evaluation")
    seeds = [item_seed(p, s, i) for p in purposes for s in range(20) for i in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert item_seed("a", 0, 1) == item_seed("a", 0, 1)
    assert item_seed("a", 1, 11) != item_seed("a", 11, 1)


@pytest.mark.parametrize("labels", [None, (7,), (3, 900, 5)])
def test_labels_take_turns(labels, pipeline) -> None:
    items = items_of(pipeline, labels=labels)
    pool = labels or (0, 1, 2, 3)
    counts = Counter(item[1][0] for item in items)
    assert counts == dict.fromkeys(pool, 12 // len(pool))


def test_labels_and_timesteps_are_not_in_step(pipeline) -> None:
    """With as many labels as timesteps each label must still meet several."""
    items = items_of(pipeline, num_samples=32)
    assert len({item[:2] for item in items}) > 8


def test_items_go_from_noise_to_image_and_labels_do_not_follow_them(pipeline) -> None:
    items = items_of(pipeline, num_inference_steps=12)
    timesteps = [item[0] for item in items]
    assert timesteps == sorted(timesteps, reverse=True)
    labels = [item[1] for item in items]
    assert labels not in (sorted(labels), sorted(labels, reverse=True))


def test_a_run_ends_after_the_last_step_that_its_items_want(pipeline) -> None:
    sampling = Sampling(12, num_inference_steps=12, guidance_scale=1.0, batch_size=4)
    for unit, num_steps in ((0, 4), (1, 8), (2, 12)):
        steps: list[int] = []
        handle = pipeline.transformer.register_forward_hook(lambda *_: steps.append(1))  # noqa: B023
        calls, _ = sample_unit(pipeline, sampling, unit)
        handle.remove()
        assert len(steps) == num_steps
        assert sum(len(call.sample()) for call in calls) == 4


def test_calls_say_where_on_the_way_they_are(pipeline) -> None:
    calls = calls_of(pipeline, num_samples=20, num_inference_steps=20)
    pipeline.scheduler.set_timesteps(20)
    steps = pipeline.scheduler.timesteps.tolist()
    for call in calls:
        first = steps.index(call.kwargs["timestep"].flatten()[0].item())
        assert call.place == pytest.approx((first + 0.5) / 20)
        bins = {steps.index(t) * 10 // 20 for t in call.kwargs["timestep"].tolist()}
        assert bins == {int(call.place * 10)}
    assert len(calls) == 10  # one for each bin, both items of it together


def test_a_unit_is_the_same_whatever_was_sampled_before(pipeline, same_bits) -> None:
    sampling = Sampling(12, num_inference_steps=6, guidance_scale=2.0, batch_size=4)
    alone, style = sample_unit(pipeline, sampling, 2)
    for unit in (1, 0, 2):
        again, _ = sample_unit(pipeline, sampling, unit)
    for one, two in zip(alone, again, strict=True):
        same_bits(one.args[0], two.args[0])
        assert (one.place, one.denoiser) == (two.place, two.denoiser)
    assert (style.rows_per_image, style.calls_per_step) == (2, 1)
    assert (style.timestep_argument, style.timestep_scale) == ("timestep", 1000)
    assert style.timestep_falls
    assert not style.guidance_argument


def test_guidance_keeps_both_rows_of_an_item(pipeline) -> None:
    items = items_of(pipeline, guidance_scale=3.0)
    assert len(items) == 12
    for _, (label, none), sample in items:
        assert label in range(4)
        assert none == 1000
        torch.testing.assert_close(sample[0], sample[1], rtol=0, atol=0)


def test_the_calls_run_the_denoiser_as_the_pipeline_did(pipeline) -> None:
    seen: list[Tensor] = []
    handle = pipeline.transformer.register_forward_hook(
        lambda _module, _args, output: seen.append(output[0])
    )
    calls = calls_of(pipeline, num_samples=1, num_inference_steps=1, guidance_scale=2.0)
    handle.remove()
    assert len(calls) == len(seen) == 1
    with torch.no_grad():
        own = pipeline.transformer(*calls[0].args, **calls[0].kwargs)[0]
    torch.testing.assert_close(own, seen[0], rtol=0, atol=0)


def test_the_hook_goes_even_when_sampling_fails(pipeline, monkeypatch) -> None:
    before = len(pipeline.transformer._forward_pre_hooks)
    calls_of(pipeline)
    assert len(pipeline.transformer._forward_pre_hooks) == before

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline.transformer, "forward", fail)
    with pytest.raises(ModelError, match=r"DiTPipeline failed \(ZeroDivisionError"):
        calls_of(pipeline)
    assert len(pipeline.transformer._forward_pre_hooks) == before


def test_the_protocol_is_json_and_says_it_all() -> None:
    protocol = Sampling(labels=(1, 2), seed=9).protocol("DiTPipeline", "DDIMScheduler")
    assert protocol["labels"] == [1, 2]
    assert protocol["seed"] == 9
    assert (protocol["pipeline"], protocol["scheduler"]) == ("DiTPipeline", "DDIMScheduler")
    assert protocol.keys() >= {"num_samples", "timesteps", "num_inference_steps", "guidance_scale"}


def stacked() -> Call:
    """Guidance over three images: rows 0–2 with the condition, 3–5 without."""
    rows = torch.arange(6.0)[:, None].expand(6, 4)
    kwargs = {"t": torch.tensor(7), "y": torch.arange(6), "flag": None, "n": {"r": rows}}
    return Call((rows,), kwargs)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_an_item_of_a_stacked_call_is_its_rows(row, same_bits) -> None:
    item = take_item(stacked(), row, 3)
    same_bits(item.kwargs["y"], torch.tensor([row, row + 3]))
    same_bits(item.args[0][:, 0], torch.tensor([row, row + 3.0]))
    same_bits(item.kwargs["n"]["r"], item.args[0])
    same_bits(item.kwargs["t"], torch.tensor(7))
    assert item.kwargs["flag"] is None


def test_rows_that_are_no_multiple_of_the_batch_are_refused() -> None:
    with pytest.raises(ModelError, match="6 rows for 4 images"):
        take_item(stacked(), 0, 4)


def test_merged_items_are_the_call_again_item_by_item(same_bits) -> None:
    items = [take_item(stacked(), row, 3) for row in (2, 0, 1)]
    (merged,) = merge_calls(items)
    same_bits(merged.kwargs["y"], torch.tensor([2, 5, 0, 3, 1, 4]))
    same_bits(merged.args[0][:, 0], torch.tensor([2.0, 5, 0, 3, 1, 4]))
    same_bits(merged.kwargs["t"], torch.tensor(7))
    assert merged.kwargs["flag"] is None


@pytest.mark.parametrize("other", [torch.tensor(8), 7, None, torch.tensor(7.0)])
def test_calls_that_differ_elsewhere_stay_apart(other) -> None:
    one = Call((torch.zeros(2, 4),), {"t": torch.tensor(7)})
    two = Call((torch.ones(2, 4),), {"t": other})
    assert merge_calls([one, two]) == [one, two]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": -3}, "num_samples=-3"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"height": -1}, "height=-1"),
        ({"num_bins": 0}, "num_bins=0"),
        ({"timesteps": "latte"}, "timesteps='latte' is unknown; did you mean 'late'"),
    ],
    ids=str,
)
def test_a_sampling_that_cannot_be(words, match) -> None:
    with pytest.raises(RecipeError, match=match):
        Sampling(**words)


@pytest.mark.parametrize(
    ("labels", "prompts", "match"),
    [
        ((1000,), None, "labels=1000: expected class ids from 0 to 999"),
        ((0, -1), None, "labels=-1"),
        (None, ("a cat",), "pass labels, not prompts"),
    ],
    ids=str,
)
def test_conditions_that_cannot_be(labels, prompts, match, pipeline) -> None:
    with pytest.raises(RecipeError, match=match):
        conditions(pipeline, labels, prompts)


class PromptPipeline:
    """Takes prompts, draws nothing."""

    def __call__(self, prompt: Any, num_inference_steps: int = 1, **_: Any) -> None: ...


class NeedsAnImage:
    def __call__(self, prompt: Any, image: Any, strength: float = 1.0, **_: Any) -> None: ...


def test_a_pipeline_of_prompts_has_our_own_for_want_of_others() -> None:
    pipeline = PromptPipeline()
    assert conditions(pipeline, None, ("a", "b")) == ["a", "b"]
    assert conditions(pipeline, None, None) == bundled.load_prompts()
    with pytest.raises(RecipeError, match=r"NeedsAnImage needs image; .*ditprune\.recorded"):
        conditions(NeedsAnImage(), None, None)
    with pytest.raises(RecipeError, match="pass prompts, not labels"):
        conditions(pipeline, (1,), None)
    with pytest.raises(RecipeError, match="neither class_labels nor prompt"):
        conditions(object.__new__(type("Other", (), {"__call__": lambda self, x: x})), None, None)


def test_an_image_is_of_its_seed_alone(pipeline) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": 1.5}
    both = draw(pipeline, [1, 2], [10, 11], **options)
    alone = draw(pipeline, [2], [11], **options)
    assert both.shape == (2, 16, 16, 1)
    torch.testing.assert_close(
        torch.from_numpy(both[1:]), torch.from_numpy(alone), rtol=1e-4, atol=1e-4
    )


def test_an_option_that_the_pipeline_does_not_take_is_refused(pipeline) -> None:
    with pytest.raises(RecipeError, match="height: DiTPipeline takes no such option"):
        draw(pipeline, [1], [0], height=64)


def test_positions_of_tokens_are_no_rows(same_bits) -> None:
    """As many tokens as rows, by chance."""
    ids, rotary = torch.arange(12.0).reshape(4, 3), (torch.ones(4, 2), torch.zeros(4, 2))
    call = Call((), {"x": torch.arange(8.0).reshape(4, 2), "img_ids": ids, "rotary_emb": rotary})
    items = [take_item(call, row, 2) for row in (0, 1)]
    same_bits(items[1].kwargs["x"], torch.tensor([[2.0, 3], [6, 7]]))
    for item in items:
        same_bits(item.kwargs["img_ids"], ids)
        same_bits(item.kwargs["rotary_emb"][0], rotary[0])
    (merged,) = merge_calls(items)
    assert merged.kwargs["x"].shape == (4, 2)
    same_bits(merged.kwargs["img_ids"], ids)
    other = Call((), {**items[0].kwargs, "img_ids": ids + 1})
    assert merge_calls([items[0], other]) == [items[0], other]


def test_calls_of_other_arguments_stay_apart() -> None:
    one, two = Call((torch.zeros(1, 2),)), Call((torch.zeros(1, 2), torch.zeros(1)))
    assert merge_calls([one, two]) == [one, two]


def test_items_share_calls_by_the_bins_that_are_asked_for(pipeline) -> None:
    for num_bins, num_calls in ((1, 1), (4, 4), (12, 12)):
        calls = calls_of(pipeline, num_samples=12, num_inference_steps=12, num_bins=num_bins)
        assert len(calls) == num_calls
