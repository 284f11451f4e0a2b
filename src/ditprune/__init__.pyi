from ditprune import runtime as runtime
from ditprune.calibration.calibrate import calibrate as calibrate
from ditprune.calls import Call as Call
from ditprune.denoiser.capture import recorded as recorded
from ditprune.errors import DitpruneError as DitpruneError
from ditprune.method.granularity import CAG as CAG
from ditprune.method.granularity import NM as NM
from ditprune.method.granularity import PerChannel as PerChannel
from ditprune.method.granularity import PerLayer as PerLayer
from ditprune.method.saliency.power import STW as STW
from ditprune.method.saliency.power import Magnitude as Magnitude
from ditprune.method.saliency.power import Power as Power
from ditprune.method.saliency.power import Wanda as Wanda
from ditprune.method.saliency.ria import RIA as RIA
from ditprune.checkpoints.statistics_file import Statistics as Statistics
from ditprune.pruning.job import Outcome as Outcome
from ditprune.pruning.loop import prune_ as prune_
from ditprune.pruning.plan import Plan as Plan
from ditprune.pruning.plan import inspect as inspect

__version__: str
