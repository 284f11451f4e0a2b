"""What a calibration notices on its way: padding, layers run more than once, where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune.calibration import observe_set as observe_module
from ditprune.calibration.calibrate import observe_calls
from ditprune.calibration.collect import calibrate_folder
from ditprune.calibration.sample import Sampling
from ditprune.calibration.workers import Worker
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.merge_statistics import merge_statistics
from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.checkpoints.statistics_file import read_statistics_file
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.errors import ModelError, OutputError
from tiny_pipelines import PIPELINES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ("a red bird", "three lemons and a blue bowl")


@pytest.fixture(scope="module")
def pixart(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pixart") / "model"
    PIPELINES["PixArtSigmaPipeline"]().save_pretrained(folder)
    return folder


def test_padding_of_text_tokens_is_counted(pixart, tmp_path) -> None:
    """Of two prompts and twice none, as many tokens as the encoder is given (300) less theirs."""
    sampling = Sampling(2, num_inference_steps=1, prompts=PROMPTS, batch_size=1)
    calibrate_folder(locate(str(pixart)), tmp_path / "s", sampling)
    (statistics,) = read_statistics_file(tmp_path / "s").values()
    # A token for each character and one for the end; of none only the end.
    num_real = sum(len(prompt) + 1 for prompt in PROMPTS) + 2 * 1
    assert dict(statistics.padding) == {"encoder_attention_mask": (4 * 300 - num_real, 4 * 300)}
    # Keys of the text see the masked tokens too.
    assert statistics.num_tokens("transformer_blocks.0.attn2.to_k") == 4 * 300


class Recurrent(nn.Module):
    """One block that runs its first layer twice; `mask` marks tokens."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.to_q, block.to_k, block.to_v = (nn.Linear(4, 4) for _ in range(3))
        self.blocks = nn.ModuleList([block])

    def forward(self, x: Tensor, token_mask: Tensor | None = None, **_more: Tensor) -> Tensor:
        block = self.blocks[0]
        return block.to_q(block.to_q(x)) + block.to_k(x) + block.to_v(x)


def tokens(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"token_mask": MASK}, {"token_mask": (3, 6)}),
        ({"token_mask": MASK.bool()}, {"token_mask": (3, 6)}),
        ({"a_MASK": MASK.float(), "masks": MASK}, {"a_MASK": (3, 6), "masks": (3, 6)}),
        ({"token_mask": torch.ones(2, 3)}, {}),  # none is masked
        ({"token_mask": MASK.float() * -10000}, {}),  # added to scores, masks the other way round
        ({"token_mask": MASK[None]}, {}),
        ({"other": MASK}, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_a_mask_is_an_argument_of_zeros_and_ones(more, expected) -> None:
    assert dict(ditprune.calibrate(Recurrent(), [{"x": tokens(0), **more}]).padding) == expected


def test_layers_called_more_than_once_are_counted_and_merging_adds_up() -> None:
    denoiser = Recurrent()
    one = {"x": tokens(0), "token_mask": MASK}
    two = {"x": tokens(1), "more_mask": MASK}
    first, second = ditprune.calibrate(denoiser, [one]), ditprune.calibrate(denoiser, [two, one])
    assert dict(first.num_inputs) == {"blocks.0.to_q": 2, "blocks.0.to_k": 1, "blocks.0.to_v": 1}
    whole = merge_statistics(first, second)
    assert whole.num_calls == 3
    assert dict(whole.num_inputs) == {"blocks.0.to_q": 6, "blocks.0.to_k": 3, "blocks.0.to_v": 3}
    assert dict(whole.padding) == {"token_mask": (6, 12), "more_mask": (3, 6)}
    assert whole.num_tokens("blocks.0.to_q") == 6 * 6
    assert whole.num_tokens("blocks.0.to_k") == 3 * 6


def test_recorded_calls_feed_calibrate_and_the_hook_goes(tiny_pipeline, same_bits) -> None:
    """As for a pipeline that needs more than ditprune can give it."""
    pipeline = load_pipeline(locate(str(tiny_pipeline)))
    denoiser = pipeline.transformer
    before, hooks = set(vars(denoiser)), dict(denoiser._forward_pre_hooks)
    with ditprune.recorded(denoiser) as calls:
        pipeline([1, 2], num_inference_steps=3, guidance_scale=1.5, output_type="latent")
    assert set(vars(denoiser)) == before
    assert denoiser._forward_pre_hooks == hooks
    assert len(calls) == 3
    assert [call.sample().shape[0] for call in calls] == [4, 4, 4]
    pipeline([3], num_inference_steps=1, output_type="latent")
    assert len(calls) == 3, "recorded outside the block"
    statistics = ditprune.calibrate(denoiser, calls)
    assert statistics.num_calls == 3
    expected = observe_calls(denoiser, calls, folder_fingerprints(tiny_pipeline / "transformer"))
    for name, state in expected.column_norms.items():
        same_bits(statistics.column_norms[name].sum_squares, state.sum_squares)
    outcome = ditprune.prune_(denoiser, statistics, sparsity=0.5)
    assert len(outcome.targets) == len(statistics.column_norms)


def test_recorded_calls_are_copies_and_the_hook_goes_when_the_block_fails() -> None:
    denoiser, x = Recurrent(), tokens(0)

    def fail() -> None:
        denoiser(x)
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"), ditprune.recorded(denoiser) as calls:
        fail()
    x.zero_()
    torch.testing.assert_close(calls[0].args[0], tokens(0), rtol=0, atol=0)
    assert "forward" not in vars(denoiser)


def test_observing_goes_on_where_it_stopped(tiny_pipeline, tmp_path, monkeypatch) -> None:
    """Not a unit is observed again, and the statistics are the same bytes."""
    model, sampling = locate(str(tiny_pipeline)), Sampling(10, num_inference_steps=2, batch_size=2)
    calibrate_folder(model, tmp_path / "whole", sampling)
    monkeypatch.setattr(observe_module, "_SAVE_EVERY_S", 0)
    original, seen = observe_module.observe_calls, [0]

    def stop(*args: Any) -> Any:
        seen[0] += 1
        if seen[0] == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(observe_module, "observe_calls", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate_folder(model, tmp_path / "out", sampling)
    calibrate_folder(model, tmp_path / "out", sampling)
    assert seen[0] == 4 + 2
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_calls_that_the_denoiser_cannot_run_are_refused_and_leave_nothing(
    tiny_pipeline, tmp_path
) -> None:
    from ditprune.calls import Call
    from ditprune.checkpoints.calibration_set import save_calibration_set

    save_calibration_set([Call((torch.zeros(1, 3),))], {}, tmp_path / "set")
    with pytest.raises(ModelError, match="cannot run the calibration calls"):
        calibrate_folder(
            locate(str(tiny_pipeline)), tmp_path / "out", Sampling(1), set_folder=tmp_path / "set"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


class Alone(Worker):
    """A process of several that waits for no other."""

    def wait(self) -> None:
        pass


def test_a_part_that_another_process_wrote_elsewhere_is_missed(pixart, tmp_path) -> None:
    model = locate(str(pixart))
    sampling = Sampling(2, num_inference_steps=1, prompts=PROMPTS, batch_size=1)
    calls = tmp_path / "calls"
    calibrate_folder(model, tmp_path / "first", sampling, set_folder=calls)
    with pytest.raises(OutputError, match="all processes"):
        calibrate_folder(model, tmp_path / "second", sampling, set_folder=calls, worker=Alone(0, 2))
    assert not (tmp_path / "second").exists()
