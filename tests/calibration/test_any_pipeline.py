"""Pipelines of every style of denoiser call, small: saved, loaded back, run, and their calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tiny_pipelines import FACTS, PIPELINES, Facts

# A warning of diffusers' DPM-Solver about its own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NUM_STEPS = 3
PROMPTS = ("a red bird on a wire", "three lemons and a blue bowl, seen from above")
LABELS = (3, 700)


@dataclass(frozen=True)
class Recorded:
    """One call, with the component that was called."""

    component: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def sample(self) -> Any:
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    @property
    def condition(self) -> Any:
        """A label or an encoded text for each row."""
        for name in ("class_labels", "encoder_hidden_states"):
            if name in self.kwargs:
                return self.kwargs[name]
        return self.args[2]

    @property
    def timestep(self) -> Tensor:
        return self.kwargs["timestep"] if "timestep" in self.kwargs else self.args[1]


@dataclass(frozen=True)
class Run:
    """Two images of one pipeline that was loaded from a folder, both from the same noise."""

    facts: Facts
    built: Any
    folder: Path
    loaded: Any
    calls: list[Recorded]
    images: np.ndarray

    @property
    def steps(self) -> list[list[Recorded]]:
        """The calls of each step, if there are as many as the facts say."""
        n = self.facts.calls_per_step
        assert len(self.calls) == NUM_STEPS * n
        return [self.calls[i : i + n] for i in range(0, len(self.calls), n)]


def record(pipeline: Any, facts: Facts, condition: dict[str, Any]) -> tuple[list[Recorded], Any]:
    """The denoiser calls and the images of one run."""
    calls: list[Recorded] = []

    def hook(component: str) -> Any:
        def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Recorded(component, args, kwargs))

        return see

    denoisers = {name: one for name, one in pipeline.components.items() if name in facts.denoisers}
    for name, denoiser in denoisers.items():
        denoiser.register_forward_pre_hook(hook(name), with_kwargs=True)
    output = pipeline(
        **condition,
        **facts.arguments(num_images=2),
        num_inference_steps=NUM_STEPS,
        generator=[torch.Generator().manual_seed(0) for _ in range(2)],
        output_type="np",
    )
    return calls, output[0]


@pytest.fixture(scope="module", params=PIPELINES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from diffusers import DiffusionPipeline

    built = PIPELINES[request.param]()
    facts = FACTS[request.param]
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    built.save_pretrained(folder)
    loaded = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    labels = request.param == "DiTPipeline"
    condition = {"class_labels": list(LABELS)} if labels else {"prompt": list(PROMPTS)}
    calls, images = record(loaded, facts, condition)
    return Run(facts, built, folder, loaded, calls, images)


def test_it_loads_back_as_it_was_saved(run: Run, same_bits) -> None:
    assert type(run.loaded) is type(run.built)
    assert run.loaded.components.keys() == run.built.components.keys()
    modules = {n: one for n, one in run.built.components.items() if isinstance(one, nn.Module)}
    assert set(run.facts.denoisers) < set(modules)
    for name, module in modules.items():
        assert list((run.folder / name).glob("*.safetensors"))
        loaded = run.loaded.components[name]
        assert not loaded.training
        for key, tensor in module.state_dict().items():
            same_bits(loaded.state_dict()[key], tensor)


def test_no_weight_is_as_the_constructor_left_it(run: Run) -> None:
    """Zeros would hide what flows through them."""
    for module in run.built.components.values():
        if isinstance(module, nn.Module):
            for name, parameter in module.named_parameters():
                assert parameter.count_nonzero() == parameter.numel(), name
                assert parameter.numel() == 1 or parameter.std() > 0, name


def test_the_same_build_gives_the_same_bits(run: Run, request, same_bits) -> None:
    again = PIPELINES[request.node.callspec.params["run"]]()
    for name in run.facts.denoisers:
        state = again.components[name].state_dict()
        for key, tensor in run.built.components[name].state_dict().items():
            same_bits(state[key], tensor)


def test_its_images_follow_the_condition(run: Run) -> None:
    assert len(run.images) == 2
    assert np.isfinite(run.images).all()
    assert run.images.std() > 0
    assert np.abs(run.images[0] - run.images[1]).max() > 0.01


def test_it_calls_its_denoisers_as_often_as_stated(run: Run) -> None:
    for step in run.steps:
        assert len({call.component for call in step}) == 1
    order = list(dict.fromkeys(call.component for call in run.calls))
    assert tuple(order) == run.facts.denoisers


def test_an_image_has_as_many_rows_as_stated(run: Run) -> None:
    for call in run.calls:
        assert isinstance(call.sample, list) == run.facts.sample_is_list
        assert len(call.sample) == 2 * run.facts.rows_per_image
        assert len(call.timestep) == len(call.sample)


def test_an_image_has_the_same_noise_with_and_without_its_condition(run: Run) -> None:
    samples = [row for call in run.steps[0] for row in call.sample]
    for row in samples:
        torch.testing.assert_close(row, samples[0], rtol=0, atol=0)
    rows = [row for call in run.steps[0] for row in call.condition]
    guided = not run.facts.guidance_embedding
    assert len(rows) == (4 if guided else 2)
    for with_it, without in zip(rows[:2], rows[2:], strict=guided):
        # Whichever comes first; texts may differ in length.
        same_shape = with_it.shape == without.shape
        assert not (same_shape and torch.allclose(with_it, without, rtol=0.01, atol=0.01))


def test_timesteps_run_as_stated(run: Run) -> None:
    times = [step[0].timestep.flatten()[0].item() for step in run.steps]
    for step, time in zip(run.steps, times, strict=True):
        for call in step:
            assert call.timestep.ndim == 1 + run.facts.timestep_per_token
            assert (call.timestep == time).all()
    assert sorted(times, reverse=not run.facts.timestep_rises) == times
    assert len(set(times)) == NUM_STEPS
    assert 0 <= min(times) < max(times) <= run.facts.timestep_scale
    assert max(times) > 0.6 * run.facts.timestep_scale


def test_guidance_is_an_input_where_stated(run: Run) -> None:
    for call in run.calls:
        given = isinstance(call.kwargs.get("guidance"), Tensor)
        assert given == run.facts.guidance_embedding
