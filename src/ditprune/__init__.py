"""Post-training pruning for diffusion transformers.

    import ditprune

    stats = ditprune.calibrate(denoiser, batches)
    outcome = ditprune.prune_(denoiser, stats, sparsity=0.5)

Method: "Post-Training Pruning for Diffusion Transformers", arXiv 2607.00927. Importing does no
work; docs/architecture.md is the map.
"""

from importlib.metadata import version as _version

from ditprune.calibration.calibrate import calibrate
from ditprune.calls import Call
from ditprune.denoiser.capture import recorded
from ditprune.errors import DitpruneError
from ditprune.method.granularity import CAG, NM, PerChannel, PerLayer
from ditprune.method.saliency.power import STW, Magnitude, Power, Wanda
from ditprune.method.saliency.ria import RIA
from ditprune.method.statistics.collected import Statistics
from ditprune.pruning.job import Outcome
from ditprune.pruning.loop import prune_
from ditprune.pruning.plan import Plan, inspect
from ditprune.runtime import diffusers_loader as _quantizer

__version__ = _version("ditprune")
_quantizer.register()

__all__ = [
    "CAG",
    "NM",
    "RIA",
    "STW",
    "Call",
    "DitpruneError",
    "Magnitude",
    "Outcome",
    "PerChannel",
    "PerLayer",
    "Plan",
    "Power",
    "Statistics",
    "Wanda",
    "calibrate",
    "inspect",
    "prune_",
    "recorded",
]
