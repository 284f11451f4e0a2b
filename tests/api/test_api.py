"""The public functions: a pipeline in memory, a denoiser, a folder, and what goes between them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ditprune
from ditprune.api import prune_folder
from ditprune.calibration.sample import Sampling
from ditprune.errors import ModelError, OutputError, RecipeError, StatisticsError
from folders import add_denoiser, files_of, save_pipeline, tensors_on_disk
from tiny_pipelines import FACTS, PIPELINES

# diffusers' schedulers under the newest numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
FIRST, SECOND = "transformer", "transformer_2"
WAN = "WanPipeline, two denoisers"
SHARES = {FIRST: 0.3, SECOND: 0.6}


def sampled(pipe: Any, name: str, num_samples: int = 4) -> ditprune.Calls:
    facts = FACTS[name]
    return ditprune.sample(
        pipe, prompts=["one", "two"], num_samples=num_samples, num_inference_steps=4,
        batch_size=2, **facts.arguments(2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def wan() -> Callable[[], Any]:
    return PIPELINES[WAN]


@pytest.fixture(scope="module")
def wan_calls(wan) -> ditprune.Calls:
    return sampled(wan(), WAN, 8)


@pytest.fixture(scope="module")
def wan_stats(wan, wan_calls) -> ditprune.Statistics:
    return ditprune.calibrate(wan(), wan_calls)


@pytest.mark.parametrize("name", ["PixArtSigmaPipeline", WAN])
def test_a_pipeline_in_memory_is_pruned_as_its_folder_is(name, tmp_path, same_bits) -> None:
    pipe = PIPELINES[name]()
    pipe.save_pretrained(tmp_path / "dense")
    calls = sampled(pipe, name, 8)
    stats = ditprune.calibrate(pipe, calls)
    on_disk = ditprune.prune(tmp_path / "dense", tmp_path / "out", stats, 0.5)
    in_memory = ditprune.prune_(pipe, stats, 0.5)
    assert tuple(in_memory.denoisers) == tuple(on_disk.denoisers) == FACTS[name].denoisers
    assert in_memory == on_disk
    assert in_memory.num_pruned == sum(part.num_pruned for part in in_memory.denoisers.values())
    assert ditprune.verify(tmp_path / "out") == []
    for component in FACTS[name].denoisers:
        stored = tensors_on_disk(tmp_path / "out" / component)
        for key, tensor in getattr(pipe, component).state_dict().items():
            same_bits(stored[key], tensor)
    pipe.save_pretrained(tmp_path / "memory")
    before = files_of(tmp_path / "memory")
    in_memory.save(tmp_path / "memory")
    added = files_of(tmp_path / "memory").keys() - before.keys()
    names = ("ditprune.json", "mask.safetensors")
    assert added == {f"{part}/{file}" for part in in_memory.denoisers for file in names}
    assert {n: files_of(tmp_path / "memory")[n] for n in before} == before
    assert ditprune.verify(tmp_path / "memory") == []


def test_targets_of_several_denoisers_carry_their_component(wan, wan_calls, wan_stats) -> None:
    pipe = wan()
    plan = ditprune.inspect(pipe, wan_stats, sparsity=0.5)
    outcome = ditprune.prune_(pipe, wan_stats, 0.5)
    for result in (wan_stats.fingerprints, plan.targets, outcome.targets):
        assert {name.split(".")[0] for name in result} == {FIRST, SECOND}
    for name, part in outcome.denoisers.items():
        for target in part.targets:
            assert outcome.targets[f"{name}.{target}"] == part.targets[target]
            norm = wan_stats.column_norm(f"{name}.{target}")
            assert torch.equal(norm, wan_stats.denoisers[name].column_norm(target))
    assert plan.num_weights == outcome.num_weights
    assert plan.num_parameters == sum(
        p.numel() for name in (FIRST, SECOND) for p in getattr(pipe, name).parameters()
    )
    assert set(wan_calls.denoisers) == {FIRST, SECOND}
    assert len(wan_calls) == sum(len(calls) for calls in wan_calls.denoisers.values())
    assert all(call.denoiser == SECOND for call in wan_calls[SECOND])
    assert len(repr(wan_stats)) < 100 > len(repr(wan_calls))


def test_each_denoiser_has_its_own_share_everywhere(
    wan, wan_stats, ditprune_verb, tmp_path
) -> None:
    pipe = wan()
    pipe.save_pretrained(tmp_path / "dense")
    wan_stats.save(tmp_path / "s.safetensors")
    in_memory = ditprune.prune_(pipe, wan_stats, SHARES)
    assert {n: round(p.sparsity, 2) for n, p in in_memory.denoisers.items()} == SHARES
    assert {n: r.sparsity for n, r in in_memory.recipe.items()} == SHARES
    recipes = {name: ditprune.Recipe(sparsity=share) for name, share in SHARES.items()}
    out = ditprune.prune(tmp_path / "dense", tmp_path / "a", wan_stats, recipe=recipes)
    assert out == in_memory
    command = ["prune", tmp_path / "dense", "--statistics", tmp_path / "s.safetensors"]
    given = [f"{name}={share}" for name, share in SHARES.items()]
    ditprune_verb(*command, "-o", tmp_path / "b", "--sparsity", given[0], "--sparsity", given[1])
    repeated = [f"{name}={tmp_path / 'a' / name / 'ditprune.json'}" for name in SHARES]
    ditprune_verb(*command, "-o", tmp_path / "c", "--recipe", repeated[0], "--recipe", repeated[1])
    card = (tmp_path / "a" / "README.md").read_text()
    assert "--recipe transformer=transformer/ditprune.json" in card
    for name in SHARES:
        contents = {(tmp_path / folder / name / "ditprune.json").read_bytes() for folder in "abc"}
        assert len(contents) == 1
    for folder in "abc":
        assert ditprune.verify(tmp_path / folder) == []


def test_what_a_pipeline_has_serves_one_of_its_denoisers(
    wan, wan_stats, tmp_path, same_bits
) -> None:
    pipe = wan()
    pipe.save_pretrained(tmp_path / "dense")
    ditprune.prune(tmp_path / "dense", tmp_path / "out", wan_stats, 0.5)
    ditprune.extract_mask(tmp_path / "out", tmp_path / "mask.safetensors")
    expected = tensors_on_disk(tmp_path / "out" / SECOND)
    # On disk, by statistics; in memory by statistics; in memory by the mask.
    ditprune.prune(tmp_path / "dense" / SECOND, tmp_path / "alone", wan_stats, 0.5)
    by_stats, by_mask = wan().transformer_2, wan().transformer_2
    ditprune.prune_(by_stats, wan_stats, 0.5)
    ditprune.apply_mask_(by_mask, tmp_path / "mask.safetensors")
    for tensors in (
        tensors_on_disk(tmp_path / "alone"), by_stats.state_dict(), by_mask.state_dict(),
    ):  # fmt: skip
        for key, tensor in expected.items():
            same_bits(tensors[key], tensor)
    with torch.no_grad():
        by_mask.blocks[0].attn1.to_q.weight.add_(1)
    with pytest.raises(StatisticsError, match="none of them was made from these weights"):
        ditprune.prune_(by_mask, wan_stats)
    with pytest.raises(ModelError, match="has masks of transformer, transformer_2, and none"):
        ditprune.apply_mask_(by_mask, tmp_path / "mask.safetensors")


def test_a_mask_in_memory_is_that_of_a_folder(tiny_dit, tiny_pipeline, tmp_path) -> None:
    ditprune.prune(tiny_pipeline, tmp_path / "out", saliency="magnitude", pattern="2:4")
    num_weights, size_bytes = ditprune.extract_mask(tmp_path / "out", tmp_path / "m.safetensors")
    assert size_bytes < num_weights
    fine_tuned = tiny_dit(seed=5).to(torch.bfloat16)
    outcome = ditprune.apply_mask_(fine_tuned, tmp_path / "m.safetensors")
    assert outcome.num_pruned == outcome.num_weights // 2
    for name, target in outcome.targets.items():
        weight = fine_tuned.get_parameter(f"{name}.weight")
        assert int((weight == 0).sum()) == target.num_zero >= target.num_pruned
        assert (weight.view(-1, 4) == 0).sum(1).min() == 2
    fine_tuned.save_pretrained(tmp_path / "tuned")
    outcome.save(tmp_path / "tuned")
    assert ditprune.verify(tmp_path / "tuned") == []
    other = nn.ModuleList([tiny_dit(seed=1)])
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ModelError, match="expected a model of the same class and size"):
        ditprune.apply_mask_(other, tmp_path / "m.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_an_outcome_is_saved_only_beside_its_own_weights(tiny_dit, tiny_stats, tmp_path) -> None:
    denoiser = tiny_dit()
    denoiser.save_pretrained(tmp_path / "dense")
    outcome = ditprune.prune_(denoiser, tiny_stats)
    with pytest.raises(ModelError, match="is not the weight that was pruned"):
        outcome.save(tmp_path / "dense")
    assert not list((tmp_path / "dense").glob("*.json.*"))
    assert {f.name for f in (tmp_path / "dense").iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    denoiser.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    outcome.save(tmp_path / "half")
    assert ditprune.verify(tmp_path / "half") == []
    with pytest.raises(ModelError, match="no such folder"):
        outcome.save(tmp_path / "nowhere")


def test_batches_are_a_list_calls_or_their_folder(tiny_pipeline, tmp_path, same_bits) -> None:
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(tiny_pipeline)
    calls = ditprune.sample(pipe, labels=[0, 1], num_samples=6, num_inference_steps=3)
    calls.save(tmp_path / "calls")
    stored = ditprune.load_calls(tmp_path / "calls")
    assert len(stored) == len(calls) == len(list(stored)) == len(list(stored))  # again and again
    assert stored.protocol == calls.protocol
    stats = ditprune.calibrate(pipe, calls)
    words = {"reconstruction": {"name": "obs", "damping": 0.05}, "sparsity": 0.5}
    results = []
    for batches in (calls, list(calls), tmp_path / "calls", str(tmp_path / "calls"), stored):
        again = ditprune.calibrate(pipe, batches, num_bins=calls.num_bins)
        assert torch.equal(
            again.column_norm("transformer_blocks.0.attn1.to_q"),
            stats.column_norm("transformer_blocks.0.attn1.to_q"),
        )
        pruned = DiTPipeline.from_pretrained(tiny_pipeline)
        ditprune.prune_(pruned, stats, batches=batches, **words)
        results.append(pruned.transformer.state_dict())
        out = tmp_path / f"out-{len(results)}"
        ditprune.prune(tiny_pipeline, out, stats, batches=batches, **words)
        assert ditprune.verify(out) == []
        results.append(tensors_on_disk(out / FIRST))
    for other in results[1:]:
        for key, tensor in results[0].items():
            same_bits(other[key], tensor)
    with pytest.raises(OutputError, match="exists"):
        calls.save(tmp_path / "calls")
    with pytest.raises(ModelError, match="calls: none of 'transfromer'; did you mean"):
        calls["transfromer"]
    with pytest.raises(RecipeError, match="takes no such option"):
        ditprune.sample(pipe, num_samples=2, guidance=3)
    for name in ("generator", "latents", "class_labels"):
        with pytest.raises(RecipeError, match=f"{name}: is set by ditprune's own options"):
            ditprune.sample(pipe, num_samples=2, **{name: None})


def test_a_pipeline_draws_as_before_it_was_sampled(tiny_pipeline) -> None:
    from diffusers import DiTPipeline

    def draw(pipe: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe([0], num_inference_steps=2, generator=generator, output_type="np").images

    pipe = DiTPipeline.from_pretrained(tiny_pipeline)
    before, bars = draw(pipe), dict(pipe._progress_bar_config)
    modes = [module.training for module in pipe.transformer.modules()]
    calls = ditprune.sample(pipe, num_samples=2, num_inference_steps=2)
    ditprune.calibrate(pipe, calls)
    assert not pipe.transformer._forward_pre_hooks
    assert [module.training for module in pipe.transformer.modules()] == modes
    assert pipe._progress_bar_config == bars
    assert (draw(pipe) == before).all()


def test_prune_without_statistics_samples_once_and_keeps_them(
    tiny_pipeline, tmp_path, monkeypatch, caplog, ditprune_verb
) -> None:
    monkeypatch.setattr(prune_folder, "Sampling", lambda: Sampling(4))
    caplog.set_level(logging.INFO, logger="ditprune")
    out = ditprune.prune(tiny_pipeline, tmp_path / "a")
    stem = Path(tiny_pipeline).resolve().name
    file, calls = tmp_path / f"{stem}.statistics.safetensors", tmp_path / f"{stem}.calls"
    assert file.is_file()
    assert "sampling" in caplog.text
    assert str(file) in caplog.text
    assert out == ditprune.prune(tiny_pipeline, tmp_path / "b", file)
    monkeypatch.setattr(prune_folder, "calibrate_folder", None)  # it may not be made again
    ditprune.prune(tiny_pipeline, tmp_path / "c", reconstruction="obs")
    ditprune.prune(tiny_pipeline, tmp_path / "d", file, reconstruction="obs", batches=calls)
    assert files_of(tmp_path / "c") == files_of(tmp_path / "d")
    output = ditprune_verb("prune", tiny_pipeline, "-o", tmp_path / "e")
    assert files_of(tmp_path / "e") == files_of(tmp_path / "a")
    assert f"using {file}" in output
    with pytest.raises(RecipeError, match="stats"):
        ditprune.prune(Path(tiny_pipeline) / FIRST, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_statistics_left_by_another_model_are_not_taken(
    tiny_dit, tiny_pipeline, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(prune_folder, "Sampling", lambda: Sampling(2))
    other = save_pipeline(tiny_dit(seed=9), tmp_path / "models" / Path(tiny_pipeline).name)
    ditprune.prune(tiny_pipeline, tmp_path / "a")
    with pytest.raises(StatisticsError, match="made from other weights"):
        ditprune.prune(other, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_dry_run_samples_nothing(tiny_pipeline, ditprune_verb, tmp_path) -> None:
    output = ditprune_verb("prune", tiny_pipeline, "-o", tmp_path / "out", "--dry-run")
    assert "before that it samples and calibrates the pipeline" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("a folder", "a folder is pruned by ditprune.prune"),
        (3, "int given, expected a diffusers pipeline or a denoiser"),
    ],
)
def test_what_is_no_model_is_refused(model, message) -> None:
    with pytest.raises(ModelError, match=message):
        ditprune.prune_(model)


def test_all_checks_come_before_any_change(wan, wan_stats, same_bits) -> None:
    pipe, dense = wan(), wan()
    excluded = {FIRST: "*.to_q", SECOND: "nothing.of.the.kind"}
    with pytest.raises(ditprune.DitpruneError, match=r"nothing\.of\.the\.kind"):
        ditprune.prune_(pipe, wan_stats, exclude=excluded)
    with pytest.raises(RecipeError, match="expected one for each denoiser"):
        ditprune.prune_(pipe, wan_stats, {FIRST: 0.5})
    with pytest.raises(RecipeError, match="batches: this recipe updates no weights"):
        ditprune.prune_(pipe, wan_stats, batches=[])
    for name in (FIRST, SECOND):
        for key, tensor in getattr(dense, name).state_dict().items():
            same_bits(getattr(pipe, name).state_dict()[key], tensor)


def test_progress_is_told_silenced_or_shown(tiny_dit, tiny_stats, monkeypatch, capsys) -> None:
    told: list[tuple[str, int, int]] = []
    ditprune.prune_(tiny_dit(), tiny_stats, progress=lambda *what: told.append(what))
    assert told[-1] == ("pruning", len(told), len(told))
    for is_terminal, progress, shows in (
        (True, None, True), (True, False, False), (False, None, False), (False, True, True),
    ):  # fmt: skip
        monkeypatch.setattr("sys.stderr.isatty", lambda value=is_terminal: value)
        capsys.readouterr()
        ditprune.prune_(tiny_dit(), tiny_stats, progress=progress)
        assert ("pruning" in capsys.readouterr().err) == shows, (is_terminal, progress)


def test_a_second_denoiser_without_calls_is_named(tiny_pipeline, tiny_dit, tmp_path) -> None:
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(tiny_pipeline)
    calls = ditprune.sample(pipe, num_samples=2, num_inference_steps=2)
    folder = save_pipeline(tiny_dit(0), tmp_path / "two")
    add_denoiser(folder, tiny_dit(1), SECOND)
    stats = ditprune.calibrate(pipe, calls)
    with pytest.raises(ditprune.DitpruneError, match=SECOND):
        ditprune.prune(folder, tmp_path / "out", stats, reconstruction="obs", batches=calls)


@pytest.fixture
def ditprune_verb(ditprune) -> Callable[..., str]:
    """Runs a verb that must succeed; gives what it printed."""

    def run(*args: object) -> str:
        code, out, err = ditprune(*args)
        assert code == 0, err
        return out + err

    return run


def test_an_outcome_is_not_saved_beside_another_prunings_weights(
    tiny_dit, tiny_stats, tmp_path
) -> None:
    """The same share and the same counts of zeros: only the weights tell them apart."""
    first, second = tiny_dit(), tiny_dit()
    outcome = ditprune.prune_(first, tiny_stats, granularity="channel")
    ditprune.prune_(second, tiny_stats, granularity="channel", saliency="magnitude")
    second.save_pretrained(tmp_path / "second")
    with pytest.raises(ModelError, match="is not the weight that was pruned"):
        outcome.save(tmp_path / "second")
    assert not (tmp_path / "second" / "ditprune.json").exists()
    first.save_pretrained(tmp_path / "first")
    outcome.save(tmp_path / "first")
    assert ditprune.verify(tmp_path / "first") == []


@pytest.mark.parametrize("given", [-5, 0, 1.5, "8 apples", True])
def test_memory_for_grams_is_a_size(given, tiny_dit, tiny_stats, tiny_pipeline, tmp_path) -> None:
    with pytest.raises(RecipeError, match="expected a size such as 8GB"):
        ditprune.prune_(tiny_dit(), tiny_stats, reconstruction="obs", max_gram_bytes=given)
    with pytest.raises(RecipeError, match="expected a size such as 8GB"):
        ditprune.prune(tiny_pipeline, tmp_path / "o", tiny_stats, reconstruction="obs",
                       gram_memory=given)  # fmt: skip


def test_globs_of_a_denoiser_that_is_not_there_are_refused(wan, wan_calls) -> None:
    blocks = {FIRST: "blocks.*", SECOND: "blocks.*", "transfromer": "blocks.*"}
    with pytest.raises(ditprune.DitpruneError, match=r"blocks transfromer=…: no such denoiser"):
        ditprune.calibrate(wan(), wan_calls, blocks=blocks)


def test_calls_that_were_given_make_the_statistics_that_were_not(
    tiny_pipeline, tmp_path, monkeypatch
) -> None:
    from diffusers import DiTPipeline

    monkeypatch.setattr(prune_folder, "Sampling", lambda: Sampling(4))
    pipe = DiTPipeline.from_pretrained(tiny_pipeline)
    ditprune.sample(pipe, num_samples=6, num_inference_steps=3).save(tmp_path / "mine")
    words = {"reconstruction": "obs", "batches": tmp_path / "mine"}
    ditprune.prune(tiny_pipeline, tmp_path / "a" / "out", **words)
    file = tmp_path / "a" / f"{Path(tiny_pipeline).resolve().name}.statistics.safetensors"
    assert ditprune.load_statistics(file).num_calls == len(ditprune.load_calls(tmp_path / "mine"))
    with pytest.raises(RecipeError, match="no such calibration set"):
        ditprune.prune(tiny_pipeline, tmp_path / "a" / "again", reconstruction="obs")


def test_statistics_of_a_pipeline_serve_one_denoiser_on_the_command_line(
    wan, wan_stats, tmp_path, ditprune_verb
) -> None:
    wan().save_pretrained(tmp_path / "dense")
    wan_stats.save(tmp_path / "stats.safetensors")
    given = "--statistics", tmp_path / "stats.safetensors"
    ditprune.prune(tmp_path / "dense" / SECOND, tmp_path / "expected", wan_stats)
    assert "blocks.0" in ditprune_verb("inspect", tmp_path / "dense" / SECOND, *given)
    ditprune_verb("prune", tmp_path / "dense" / SECOND, "-o", tmp_path / "alone", *given)
    assert files_of(tmp_path / "alone") == files_of(tmp_path / "expected")
    assert ditprune.verify(tmp_path / "alone") == []
