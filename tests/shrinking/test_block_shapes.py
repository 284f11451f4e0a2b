"""Few shapes of blocks: the ones that cost least, and compilers take them."""

from __future__ import annotations

import copy
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

import ditprune
from ditprune import bundled
from ditprune.errors import RecipeError
from ditprune.method.columns import Removal
from ditprune.progress import silent
from ditprune.shrinking.in_memory import shrink_denoiser_
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.prices import Prices
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.shapes import clustered


def plan_of_blocks(costs: list[list[float]], num_whole: int = 0) -> ShrinkPlan:
    """One MLP for each block, whose steps have a price of 1 and these costs."""
    groups, orders = {}, {}
    for number, steps in enumerate(costs):
        name = f"blocks.{number}.ff"
        groups[name] = SimpleNamespace(
            name=name, kind="neurons", block=f"blocks.{number}", num_units=len(steps) + 1
        )
        orders[name] = [Removal(name, (step,), cost, 1.0) for step, cost in enumerate(steps)]
    numbers = range(len(costs) + num_whole)
    shapes = {f"blocks.{number}.ff.weight": (4, 4) for number in numbers}
    shapes |= {f"blocks.{number}.norm": (4,) for number in numbers[len(costs) :]}
    prices = Prices({}, shapes, dict.fromkeys(shapes, 4), frozenset(shapes))
    return ShrinkPlan(groups, orders, prices, 1.0, float(sum(map(len, costs))))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_they_are_about_the_best_that_can_be(seed: int) -> None:
    """Against all ways to give the first block a width, and four others one of two."""
    draw = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.tensor([1.0, 1.2, 6.0, 7.0, 8.0])[:, None]
    costs = (draw.cumsum(1) * scale).tolist()
    plan, recipe = plan_of_blocks(costs), ShrinkRecipe(ratio=0.5, max_shapes=3)
    counts = clustered(plan, plan.counts(recipe), recipe)
    assert len(set(list(counts.values())[1:])) <= 2
    assert plan.ratio(counts) >= 0.5

    def error(widths: tuple[int, ...]) -> float:
        return sum(sum(steps[:width]) for steps, width in zip(costs, widths, strict=True))

    at_least = sum(counts.values())
    ways = (w for w in product(range(5), repeat=5) if len(set(w[1:])) <= 2 and sum(w) >= at_least)
    assert plan.error(counts) <= 1.15 * min(map(error, ways))


def test_free_choice_stays_where_its_shapes_are_few() -> None:
    plan = plan_of_blocks([[1, 2], [1, 2], [9, 9]])
    recipe = ShrinkRecipe(ratio=0.6, max_shapes=3)
    free = plan.counts(recipe)
    assert clustered(plan, free, recipe) == free
    assert clustered(plan, free, ShrinkRecipe(ratio=0.6, max_shapes="none")) == free


def test_blocks_that_lose_nothing_have_a_shape_too() -> None:
    plan = plan_of_blocks([[1, 2], [1, 2], [9, 9]], num_whole=1)
    recipe = ShrinkRecipe(ratio=0.5, max_shapes=2)
    assert len(set(clustered(plan, plan.counts(recipe), recipe).values())) == 1


@pytest.mark.parametrize(
    "words", [{"ratio": 0.4}, {"max_error": 8.0}, {"fit": 100}], ids=lambda words: str(*words)
)
def test_what_was_asked_for_holds_with_few_shapes(words: dict[str, Any], monkeypatch: Any) -> None:
    plan = plan_of_blocks([[1, 2, 3], [1.5, 2, 2], [3, 3, 9], [2, 2, 9]])
    recipe = ShrinkRecipe(**words, max_shapes=1)
    taken = {"size": lambda _, counts: SimpleNamespace(num_bytes=130 - 7 * sum(counts.values()))}
    for name, function in taken.items():
        monkeypatch.setattr(ShrinkPlan, name, function)
    counts = clustered(plan, plan.counts(recipe), recipe)
    assert len(set(counts.values())) == 1
    assert set(counts.values()) == {{"ratio": 2, "max_error": 1, "fit": 2}[next(iter(words))]}


@pytest.fixture(scope="module")
def trained() -> Any:
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(bundled.PIPELINE)
    return pipe.transformer.eval(), list(
        ditprune.sample(pipe, num_samples=6, num_inference_steps=6)
    )


def shrunk(trained: Any, **words: Any) -> tuple[Any, Any]:
    smaller = copy.deepcopy(trained[0])
    return smaller, shrink_denoiser_(smaller, trained[1], ShrinkRecipe(**words), silent)


def shapes_of(denoiser: Any) -> set[Any]:
    return {
        tuple(sorted((name, tuple(p.shape)) for name, p in block.named_parameters()))
        for block in denoiser.transformer_blocks
    }


def noise(denoiser: Any, trained: Any) -> torch.Tensor:
    call = trained[1][0]
    with torch.no_grad():
        return denoiser(*call.args, **call.kwargs).sample


def compiled(denoiser: Any, trained: Any) -> torch.Tensor:
    """What it predicts with its blocks compiled, as `compile_repeated_blocks` compiles them.

    Which shapes are compiled anew is decided before a backend gets them.
    """
    with_compiled = copy.deepcopy(denoiser)
    torch._dynamo.reset()
    for block in with_compiled.transformer_blocks:
        block.compile(fullgraph=True, backend="eager")
    return noise(with_compiled, trained)


def test_two_shapes_for_eight_blocks(trained: Any) -> None:
    smaller, outcome = shrunk(trained, ratio=0.3, modulation="none", max_shapes=2)
    assert len(shapes_of(smaller)) == 2
    assert 0.3 <= outcome.ratio < 0.34
    assert outcome.error_of_free_choice < outcome.error < 8 * outcome.error_of_free_choice
    with torch._dynamo.config.patch(recompile_limit=2):
        assert torch.equal(compiled(smaller, trained), noise(smaller, trained))
    free, other = shrunk(trained, ratio=0.3, modulation="none", max_shapes="none")
    assert other.error == other.error_of_free_choice == outcome.error_of_free_choice
    assert len(shapes_of(free)) > 2
    with torch._dynamo.config.patch(recompile_limit=2), pytest.raises(FailOnRecompileLimitHit):
        compiled(free, trained)


def test_weights_that_fit_into_so_many_bytes(trained: Any) -> None:
    smaller, outcome = shrunk(trained, fit="12MB")
    assert outcome.recipe.fit == 12_000_000
    assert 11_000_000 < outcome.after.num_bytes <= 12_000_000
    tensors = smaller.state_dict().values()
    assert sum(t.numel() * t.element_size() for t in tensors) == outcome.after.num_bytes
    with pytest.raises(RecipeError, match=r"fit=1,000,000: the weights take .* with all gone"):
        shrunk(trained, fit="1MB")
    with pytest.raises(RecipeError, match=r"ratio=0\.3 and fit=12MB exclude each other"):
        ShrinkRecipe(ratio=0.3, fit="12MB")
