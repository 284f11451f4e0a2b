"""Post-training pruning for diffusion transformers.

    import ditprune

    stats = ditprune.calibrate(denoiser, batches)
    outcome = ditprune.prune_(denoiser, stats, sparsity=0.5)

Method: "Post-Training Pruning for Diffusion Transformers", arXiv 2607.00927. Importing does no
work; docs/architecture.md is the map.
"""

from importlib.metadata import version as _version

from ditprune import quantizer as _quantizer
from ditprune.calibration.calibrate import calibrate
from ditprune.calibration.capture import recorded
from ditprune.calls import Call
from ditprune.errors import DitpruneError
from ditprune.granularity.cag import CAG
from ditprune.granularity.channel import PerChannel
from ditprune.granularity.layer import PerLayer
from ditprune.granularity.nm import NM
from ditprune.plan import Plan, inspect
from ditprune.prune import Outcome, prune_
from ditprune.saliency.magnitude import Magnitude
from ditprune.saliency.power import Power
from ditprune.saliency.ria import RIA
from ditprune.saliency.stw import STW
from ditprune.saliency.wanda import Wanda
from ditprune.statistics.collected import Statistics

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
