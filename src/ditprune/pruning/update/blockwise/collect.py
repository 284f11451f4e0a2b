"""What are the Grams of one block's targets, as it runs forwards?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from ditprune.calibration.observe import observing_grams
from ditprune.calls import Call
from ditprune.denoiser.blockwise.sweep import Step
from ditprune.denoiser.capture import hooked, input_of
from ditprune.errors import StatisticsError
from ditprune.method.statistics.gram import Gram, start_gram, update_gram
from ditprune.pruning.update.blockwise.run import BlockRun, Followed
from ditprune.pruning.update.grams import LayerGram, finished
from ditprune.pruning.update.output_grams import as_tokens


def block_grams(
    run: BlockRun, step: Step, measured: Mapping[str, Followed]
) -> Iterator[dict[str, LayerGram]]:
    """The Grams of a block's targets, as many at once as memory allows: a run of the block each.

    Args:
        measured: how much tokens and rows count, where the recipe follows the output.
    """
    for names in run.stages(run.names_in(step.number)):
        weighted = {
            name: measured[name]
            for name in names
            if name in measured and measured[name].rows is not None
        }
        with weighing(run.chain.denoiser, weighted) as states:
            plain = plain_grams(run, step, [name for name in names if name not in weighted])
        grams = {
            name: LayerGram(finished(name, states[name].gram).products, seen.rows)
            for name, seen in weighted.items()
        }
        yield {name: grams.get(name) or plain[name] for name in names}


def plain_grams(run: BlockRun, step: Step, names: Sequence[str]) -> dict[str, LayerGram]:
    """Grams in which all tokens count alike; the block runs for them.

    Raises StatisticsError for a target that the calls do not reach, and for NaN and Inf.
    """
    with observing_grams(run.chain.denoiser, names, run.timestep_weights) as observation:
        (step.run if step.has_run else step.advance)(observation.begin)
    if unreached := [name for name in names if name not in observation.states]:
        raise StatisticsError(
            f"{unreached[0]}: no calibration call reaches it, so it cannot be reconstructed; "
            "exclude it, or calibrate with the same calls"
        )
    return {name: finished(name, observation.states[name]) for name in names}


@dataclass(eq=False)
class _Weighted:
    """The Gram of a layer's tokens, each times its root, as they come.

    Args:
        roots: of all tokens, in order.
    """

    roots: Tensor
    gram: Gram
    num_seen: int = field(default=0)

    def add(self, tokens: Tensor) -> None:
        begin, end = self.num_seen, self.num_seen + len(tokens)
        roots_T1 = self.roots[begin:end, None].to(tokens.device)
        self.gram, self.num_seen = update_gram(self.gram, tokens.float() * roots_T1), end


@contextmanager
def weighing(
    denoiser: nn.Module, measured: Mapping[str, Followed]
) -> Iterator[dict[str, _Weighted]]:
    """While the block runs, take Grams of the weighted tokens that enter these layers."""
    states: dict[str, _Weighted] = {}

    def see(name: str, layer: nn.Module, got: Call) -> None:
        tokens, seen = as_tokens(layer, input_of(got)), measured[name]
        if name not in states:
            assert seen.roots is not None
            start = start_gram(tokens.shape[1], tokens.device)
            if seen.outside is not None:
                start = Gram(seen.outside.to(tokens.device), 0)
            states[name] = _Weighted(seen.roots, start)
        states[name].add(tokens)

    with hooked({name: denoiser.get_submodule(name) for name in measured}, see):
        yield states
