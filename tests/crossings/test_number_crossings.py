"""Every recipe × what numbers can be: half precision, NaN, tiny and huge ones."""

from __future__ import annotations

import dataclasses
import math
from itertools import cycle
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ditprune
from adapters import wrap_all
from ditprune.checkpoints.skeleton import module_fingerprints
from ditprune.errors import DitpruneError, ModelError, RecipeError, StatisticsError
from ditprune.method.reconstruction import obs
from ditprune.method.reconstruction.layer import Choice, LayerResult
from ditprune.method.words import build, from_json
from ditprune.pruning.update import folder, layers
from ditprune.pruning.update.judge import Judge
from ditprune.reporting.told import facts_of
from ditprune.targets import writable
from ditprune.targets.discover import discover
from ditprune.writing.files import read_manifest
from elsewhere import Elsewhere, ElsewhereMode, move_
from layer_problems import layer

DISTILL = {"name": "distill", "num_steps": 4, "batch_size": 4}
BY_SALIENCY: dict[str, dict[str, Any]] = {
    "stw": {},
    "wanda": {"saliency": "wanda"},
    "magnitude": {"saliency": "magnitude"},
    "ria": {"saliency": "ria"},
    "power": {"saliency": {"name": "power", "weight_power": 3, "activation_power": 0.7}},
    "channel": {"granularity": "channel"},
    "layer": {"granularity": "layer"},
    "2:4": {"pattern": "2:4"},
    "owl": {"allocation": "owl"},
}
WITH_CALLS: dict[str, dict[str, Any]] = {
    "obs": {"reconstruction": "obs"},
    "obs, its mask": {"reconstruction": "obs", "mask": "reconstruction"},
    "obs 2:4": {"reconstruction": "obs", "mask": "reconstruction", "pattern": "2:4"},
    "admm": {"reconstruction": "admm"},
    "admm, its mask": {"reconstruction": "admm", "mask": "reconstruction"},
    "packages": {"reconstruction": "obs", "packages": 2},
    "sensitivity": {"allocation": "sensitivity"},
    "proxy": {"allocation": "proxy"},
    "admm, proxy": {"reconstruction": "admm", "allocation": "proxy"},
    "fast": {"preset": "fast"},
    "fast 2:4": {"preset": "fast", "pattern": "2:4"},
    "distill": {"refinement": DISTILL},
    "best": {
        "preset": "best",
        "refinement": {**DISTILL, "held_back": 0.2},
        "include": "*.attn1.*",
    },
    "max_error": {"max_error": 0.5},
    "max_error, obs": {"max_error": 0.5, "reconstruction": "obs"},
}
RECIPES = BY_SALIENCY | WITH_CALLS


def make(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A DiT of two blocks, the smallest that packages cut."""
    from diffusers import DiTTransformer2DModel

    denoiser = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=16, num_layers=2, in_channels=4, out_channels=4,
        sample_size=4, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():  # `to` of diffusers warns
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = (scale * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return denoiser.eval()


def calls_of(dtype: torch.dtype = torch.float32, num: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "hidden_states": torch.randn(2, 4, 4, 4, generator=generator).to(dtype),
            "timestep": torch.randint(0, 1000, (2,), generator=generator),
            "class_labels": torch.randint(0, 10, (2,), generator=generator),
        }
        for _ in range(num)
    ]


def prune(denoiser: nn.Module, words: dict[str, Any], calls: Any, stats: Any = None) -> Any:
    needs_calls = build(**words).needs_calls
    stats = ditprune.calibrate(denoiser, calls_of()) if stats is None else stats
    return ditprune.prune_(denoiser, stats, batches=calls if needs_calls else None, **words)


def masks(denoiser: nn.Module, outcome: Any) -> dict[str, Tensor]:
    return {name: denoiser.get_parameter(f"{name}.weight") != 0 for name in outcome.targets}


def bits(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}


def assert_untouched(denoiser: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in denoiser.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# --- tiny and huge ---


@pytest.fixture(scope="module")
def stats() -> Any:
    return ditprune.calibrate(make(), calls_of())


@pytest.mark.parametrize("scale", [-110, -80, 90, 110])
@pytest.mark.parametrize("name", BY_SALIENCY)
def test_weights_of_any_size_are_chosen_as_if_they_were_ordinary(name, scale, stats) -> None:
    """2^scale times the weights is the same layer to every saliency, so the same weights go."""
    words = BY_SALIENCY[name] | {"include": "*.attn1.to_q"}
    ordinary, other = make(), make()
    expected = masks(ordinary, prune(ordinary, words, None, stats))
    layers = [layer for path, layer in other.named_modules() if path.endswith("attn1.to_q")]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(2.0**scale)
    outcome = prune(other, words, None, of_these_weights(stats, other))
    found = masks(other, outcome)
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)
    assert all(math.isfinite(target.g_out) for target in outcome.targets.values())


def of_these_weights(stats: Any, denoiser: nn.Module) -> Any:
    return dataclasses.replace(
        stats, fingerprints=module_fingerprints(denoiser, discover(denoiser).values())
    )


@pytest.mark.parametrize("scale", [-100, 100])
def test_norms_of_any_size_are_too(scale, stats) -> None:
    """Inputs of any size, that is: their squares are beyond float32, and the norms are not."""
    expected = make()
    masks_before = masks(expected, prune(expected, {}, None, stats))
    norms = {
        name: dataclasses.replace(state, sum_squares=state.sum_squares * 4.0**scale)
        for name, state in stats.column_norms.items()
    }
    denoiser = make()
    outcome = prune(denoiser, {}, None, dataclasses.replace(stats, column_norms=norms))
    found = masks(denoiser, outcome)
    assert all(torch.equal(found[name], masks_before[name]) for name in found)


# --- what is refused before the work ---


@pytest.mark.parametrize("words", [{"preset": "best"}, {"allocation": "sensitivity"}])
def test_a_share_that_no_layer_may_lose_is_refused_at_once(words) -> None:
    with pytest.raises(RecipeError, match=r"removes at most 98% of a layer, 99\.0% asked for"):
        build(sparsity=0.99, **words)


def test_a_share_that_these_layers_may_not_lose_is_refused_before_measuring(stats) -> None:
    """Channels of 16 weights lose 15 at most, 94 %."""
    denoiser, said = make(), list[str]()
    words = {"allocation": "proxy", "reconstruction": "obs", "granularity": "channel"}
    with pytest.raises(RecipeError, match=r"the bounds of the layers allow 0\.0% to 9"):
        ditprune.prune_(
            denoiser, stats, 0.979, batches=calls_of(), progress=lambda *a: said.append(a[0]),
            **words,
        )  # fmt: skip
    assert said == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", WITH_CALLS)
def test_calls_that_hold_a_nan_are_refused_and_nothing_changes(name, value, stats) -> None:
    denoiser, calls = make(), calls_of()
    calls[1]["hidden_states"][0, 0, 0, 0] = value
    before = bits(denoiser)
    with pytest.raises(DitpruneError, match="call 1 of 3 holds NaN or Inf") as caught:
        prune(denoiser, WITH_CALLS[name], calls, stats)
    assert "\n" not in str(caught.value)
    assert_untouched(denoiser, before)


@pytest.mark.parametrize("scale", [-90, 90])
@pytest.mark.parametrize("name", [n for n in WITH_CALLS if "obs" in n or "admm" in n])
def test_updates_of_weights_of_any_size_are_those_of_ordinary_ones(name, scale) -> None:
    """Of one layer; both methods, both ways to choose the mask."""
    weight, gram = layer(16, 32)
    method = build(**WITH_CALLS[name]).reconstruction
    for mask in (weight.abs() > 0.5, Choice(4, 2), Choice(32, 16)):
        expected, got = method(weight, mask, gram), method(weight * 2.0**scale, mask, gram)
        assert torch.equal(got.keep, expected.keep)
        assert torch.equal(got.weight, expected.weight * 2.0**scale)
        assert got.error == math.ldexp(expected.error, 2 * scale)


# --- half precision ---


HALF = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, dtype in zip(RECIPES, cycle(HALF))]
)
def test_every_recipe_prunes_half_precision(name, dtype) -> None:
    """By turns in either."""
    denoiser, calls = make(dtype), calls_of(dtype)
    outcome = prune(denoiser, RECIPES[name], calls, ditprune.calibrate(denoiser, calls))
    assert outcome.num_pruned == sum(target.num_asked for target in outcome.targets.values())
    for target in outcome.targets.values():
        weight = denoiser.get_parameter(f"{target.name}.weight")
        assert weight.dtype == dtype
        assert weight.isfinite().all()
        assert int((weight == 0).sum()) == target.num_zero


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_in_half_precision_lowers_the_error_as_float32_does(dtype) -> None:
    """Weights in float16 used to turn into NaN, and steps below their spacing were lost."""
    errors = {}
    for kind in (torch.float32, dtype):
        denoiser, calls = make(kind), calls_of(kind, num=8)
        judge = Judge(denoiser, [ditprune.Call.of(call) for call in calls])
        words = {"refinement": {**DISTILL, "num_steps": 40}, "saliency": "magnitude"}
        prune(denoiser, words, calls, ditprune.calibrate(denoiser, calls))
        errors[kind] = judge.error(denoiser)
    assert errors[dtype] == pytest.approx(errors[torch.float32], rel=0.1)


@dataclasses.dataclass(frozen=True)
class Large:
    """A reconstruction that gives weights beyond float16."""

    name: ClassVar[str] = "large"
    needs: ClassVar[frozenset[type]] = frozenset()

    def __call__(self, weight: Tensor, mask: Tensor) -> LayerResult:
        return LayerResult(weight.float() * mask * 1e6, mask, 0.0, 0.0)


def test_an_update_that_float16_cannot_represent_is_refused_by_name() -> None:
    denoiser = make(torch.float16)
    before = bits(denoiser)
    with pytest.raises(
        ModelError, match=r"norm1.linear: an updated weight is .* torch\.float16 does not ho"
    ):
        ditprune.prune_(denoiser, saliency="magnitude", reconstruction=Large())
    assert_untouched(denoiser, before)


@pytest.mark.parametrize("words", [{"reconstruction": "obs"}, {"allocation": "proxy"}], ids=str)
def test_squares_that_float32_loses_are_refused_by_name(words) -> None:
    """The inputs of one layer are near 1e-20: there float32, and their squares are not."""
    denoiser = make()
    with torch.no_grad():
        for parameter in denoiser.get_submodule("transformer_blocks.0.attn1.to_v").parameters():
            parameter.mul_(1e-20)
    before, stats = bits(denoiser), ditprune.calibrate(denoiser, calls_of())
    with pytest.raises(
        StatisticsError,
        match=r"^transformer_blocks\.0\.attn1\.to_out\.0: the squares of its .* are",
    ):
        ditprune.prune_(denoiser, stats, batches=calls_of(), **words)
    assert_untouched(denoiser, before)


# --- what was dropped ---


@pytest.fixture
def rows() -> list[dict[str, Tensor]]:
    return calls_of(num=8)


def test_a_refinement_that_makes_it_worse_is_dropped_and_told(rows, stats, tmp_path) -> None:
    words = {"refinement": {**DISTILL, "learning_rate": 10.0}, "saliency": "magnitude"}
    alone, denoiser = make(), make()
    prune(alone, {"saliency": "magnitude"}, None, stats)
    outcome = prune(denoiser, words, rows, stats)
    assert not outcome.refined["is_taken"]
    assert all(map(torch.equal, alone.parameters(), denoiser.parameters()))
    (line,) = [line for line in outcome.told() if "refinement" in line]
    assert line.startswith("refinement dropped: ")
    denoiser.save_pretrained(tmp_path / "out")
    outcome.save(tmp_path / "out")
    assert line in facts_of(read_manifest(tmp_path / "out"))


def test_a_refinement_that_is_taken_says_its_errors(rows, stats) -> None:
    outcome = prune(make(), {"refinement": {**DISTILL, "num_steps": 30}}, rows, stats)
    assert outcome.refined["is_taken"]
    assert outcome.refined["error_after"] < outcome.refined["error_before"]
    assert not any("refine" in line for line in outcome.told())


def test_owl_in_a_folder_reads_one_weight_at_a_time_and_gives_what_memory_gives(
    stats, tmp_path, monkeypatch
) -> None:
    """It took the whole denoiser in float32, which --dry-run did not say."""
    dense, in_memory = make(), make()
    dense.save_pretrained(tmp_path / "dense")
    monkeypatch.setattr(folder, "load_denoiser", None)
    outcome = ditprune.prune(tmp_path / "dense", tmp_path / "out", stats=stats, allocation="owl")
    expected = prune(in_memory, {"allocation": "owl"}, None, stats)
    found = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert outcome.targets == expected.targets
    assert len({target.sparsity for target in outcome.targets.values()}) > 1


def test_a_share_under_an_error_takes_layers_and_grams_once(rows, stats, monkeypatch) -> None:
    times: list[int] = []
    whole = layers.prepare

    def counted(*args: Any) -> Any:
        times.append(1)
        return whole(*args)

    monkeypatch.setattr(layers, "prepare", counted)
    outcome = prune(make(), {"max_error": 0.3, "reconstruction": "obs"}, rows, stats)
    assert len(times) == len(outcome.targets)


def test_costs_factor_the_gram_of_a_layer_once(rows, stats, monkeypatch) -> None:
    times: list[int] = []
    whole = obs.inverse_factor

    def counted(*args: Any) -> Any:
        times.append(1)
        return whole(*args)

    monkeypatch.setattr(obs, "inverse_factor", counted)
    outcome = prune(make(), {"allocation": "proxy", "reconstruction": "obs"}, rows, stats)
    assert len(times) == 2 * len(outcome.targets)  # for the costs, and for good


# --- a device that is not the CPU ---


def test_tensors_of_two_places_do_not_meet() -> None:
    with ElsewhereMode(), pytest.raises(RuntimeError, match="expected all tensors on one device"):
        torch.eye(2) @ Elsewhere(torch.eye(2))


@pytest.mark.parametrize("name", RECIPES)
def test_no_tensor_of_the_cpu_meets_one_of_the_denoisers_device(name, stats, monkeypatch) -> None:
    """Such a tensor is a subclass, which the guard refuses to write into; all else is as it is."""
    monkeypatch.setattr(writable, "_memory_obstacle", lambda *_: "")
    denoiser, words = make(), dict(RECIPES[name])
    # One layer shows it, or one block.
    words["include"] = "*.0.attn1.to_q" if name in WITH_CALLS else "*.0.*"
    if name == "packages":
        words["include"] = "*.attn1.to_q"
    with ElsewhereMode():
        calls = [{key: Elsewhere(value) for key, value in call.items()} for call in calls_of()]
        move_(denoiser)
        seen = ditprune.calibrate(denoiser, calls) if name in ("stw", "obs") else stats
        outcome = prune(denoiser, words, calls, seen)
        found = masks(denoiser, outcome)
    assert all(isinstance(mask, Elsewhere) for mask in found.values())
    if name in BY_SALIENCY:
        expected = make()
        masks_here = masks(expected, prune(expected, words, None, stats))
        assert all(torch.equal(found[layer].held, masks_here[layer]) for layer in found)


# --- adapters, folders, constants ---

SOME = ("stw", "owl", "obs", "admm, its mask", "proxy", "distill")


def lora(denoiser: nn.Module) -> None:
    for path in wrap_all(denoiser, leaf="attn1.to_q"):
        nn.init.zeros_(denoiser.get_submodule(path).lora_B["default"].weight)


def lora_of_peft(denoiser: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0"])
    peft.inject_adapter_in_model(config, denoiser)
    denoiser.eval()


@pytest.mark.parametrize("attach_", [lora, lora_of_peft])
def test_a_layer_under_a_lora_is_pruned_as_if_it_were_bare(attach_) -> None:
    """The adapter begins as zero, as PEFT's do, so that inputs are the same; all recipes."""
    for name, recipe in RECIPES.items():
        words = recipe | {"include": "*.attn1.to_[qo]*"}
        bare, wrapped = make(), make()
        attach_(wrapped)
        adapters = {n: p.clone() for n, p in wrapped.state_dict().items() if "lora_" in n}
        outcomes = [prune(denoiser, words, calls_of(num=8)) for denoiser in (bare, wrapped)]
        assert list(outcomes[0].targets) == list(outcomes[1].targets), name
        for path, target in outcomes[1].targets.items():
            layer = wrapped.get_submodule(path)
            weight = getattr(layer, "base_layer", layer).weight
            assert torch.equal(weight, bare.get_parameter(f"{path}.weight")), (name, path)
            assert int((weight == 0).sum()) == target.num_zero
        assert adapters
        assert all(torch.equal(wrapped.state_dict()[n], p) for n, p in adapters.items()), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SOME)
def test_a_folder_in_half_precision_keeps_its_dtype_and_its_claims(name, dtype, tmp_path) -> None:
    dense = make(dtype)
    dense.save_pretrained(tmp_path / "dense")
    stats = ditprune.calibrate(dense, calls_of(dtype))
    calls = calls_of() if build(**RECIPES[name]).needs_calls else None
    outcome = ditprune.prune(
        tmp_path / "dense", tmp_path / "out", stats, batches=calls, **RECIPES[name]
    )
    assert ditprune.verify(tmp_path / "out") == []
    found = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    for path, target in outcome.targets.items():
        weight = found[f"{path}.weight"]
        assert weight.dtype == dtype
        assert weight.isfinite().all()
        assert int((weight == 0).sum()) == target.num_zero


@pytest.mark.parametrize(
    "words",
    [
        {"saliency": {"name": "power", "weight_power": 1.5, "activation_power": 0.25}},
        {"saliency": {"name": "ria", "activation_power": 0.75}},
        {"reconstruction": {"name": "obs", "damping": 0.02, "block_size": 16}},
        {"reconstruction": {"name": "admm", "penalty": 0.5, "num_steps": 20}},
        {"refinement": {**DISTILL, "mixing": 0.1, "seed": 3}},
        {"cag_threshold": 0.3},
    ],
    ids=str,
)
def test_constants_of_ones_own_are_verified_and_repeat_the_run(words, stats, tmp_path) -> None:
    make().save_pretrained(tmp_path / "dense")
    calls = calls_of() if build(**words).needs_calls else None
    ditprune.prune(tmp_path / "dense", tmp_path / "out", stats, batches=calls, **words)
    assert ditprune.verify(tmp_path / "out") == []
    content = read_manifest(tmp_path / "out")["recipe"]
    assert from_json(content, "ditprune.json") == build(**words)
