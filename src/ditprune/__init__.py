"""Post-training pruning for diffusion transformers.

    import ditprune

    stats = ditprune.calibrate(pipe, ditprune.sample(pipe))
    outcome = ditprune.prune_(pipe, stats, sparsity=0.5)

Method: "Post-Training Pruning for Diffusion Transformers", arXiv 2607.00927. Importing does no
work, and no torch: a name is imported when it is first used. docs/architecture.md is the map.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

from ditprune.diffusers_hook import register as _register

# Where each public name is defined. A new name is a line here and a line in __init__.pyi.
_MODULES = {
    "CAG": "ditprune.method.granularity",
    "NM": "ditprune.method.granularity",
    "RIA": "ditprune.method.saliency.ria",
    "STW": "ditprune.method.saliency.power",
    "Call": "ditprune.calls",
    "Calls": "ditprune.api.calls",
    "Distill": "ditprune.method.distill",
    "DitpruneError": "ditprune.errors",
    "Magnitude": "ditprune.method.saliency.power",
    "Outcome": "ditprune.pruning.job",
    "PerChannel": "ditprune.method.granularity",
    "PerLayer": "ditprune.method.granularity",
    "Plan": "ditprune.pruning.plan",
    "Power": "ditprune.method.saliency.power",
    "Recipe": "ditprune.method.recipe",
    "ShrinkRecipe": "ditprune.shrinking.recipe",
    "Statistics": "ditprune.checkpoints.statistics_file",
    "Wanda": "ditprune.method.saliency.power",
    "apply_mask_": "ditprune.api.memory",
    "calibrate": "ditprune.api.memory",
    "convert": "ditprune.api.folders",
    "evaluate": "ditprune.evaluation.evaluate",
    "extract_mask": "ditprune.api.folders",
    "inspect": "ditprune.api.folders",
    "load_calls": "ditprune.api.calls",
    "load_statistics": "ditprune.api.given",
    "prune": "ditprune.api.prune_folder",
    "prune_": "ditprune.api.memory",
    "recorded": "ditprune.denoiser.capture",
    "report": "ditprune.api.folders",
    "sample": "ditprune.api.calls",
    "shrink": "ditprune.api.shrink",
    "shrink_": "ditprune.api.shrink",
    "verify": "ditprune.api.folders",
}
# Modules that are attributes without an import of their own.
_PUBLIC_MODULES = ("bundled", "runtime")

__all__ = list(_MODULES)

_register()


def __getattr__(name: str) -> _Any:
    if name in _MODULES:
        value = getattr(_import_module(_MODULES[name]), name)
    elif name in _PUBLIC_MODULES:
        value = _import_module(f"ditprune.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("ditprune")
    else:
        raise AttributeError(f"module 'ditprune' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_PUBLIC_MODULES, "__version__"})
