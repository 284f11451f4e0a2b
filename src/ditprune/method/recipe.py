"""What does a run do? Every choice in one checked value, and its JSON form.

A word is a field of `Recipe`, `pattern`, `preset`, or a constant of a method. The command line,
`prune_`, `Recipe` and the JSON form in ditprune.json take the same words, which stand here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, fields
from typing import Any

from ditprune.errors import RecipeError
from ditprune.method.allocation import ALLOCATIONS, MEASURED, check_reachable
from ditprune.method.choices import (
    AXES,
    as_error,
    as_globs,
    as_share,
    check_name,
    choose,
    constants_of,
    flag,
    with_preset,
)
from ditprune.method.distill import Distill
from ditprune.method.granularity import CAG, NM
from ditprune.method.numbers import whole
from ditprune.method.reconstruction import Reconstruction
from ditprune.method.reconstruction.layer import Nothing
from ditprune.method.saliency import Saliency
from ditprune.method.statistics.column_norm import TIMESTEP_WEIGHTINGS
from ditprune.method.statistics.gram import Gram

DEFAULT_SPARSITY = 0.5
MASKS = ("saliency", "reconstruction", "refinement")
# The fields that hold one of a few names; the first name is the default.
NAMES = {
    "mask": MASKS, "allocation": ALLOCATIONS, "objective": ("layer", "output"),
    "timestep_weighting": TIMESTEP_WEIGHTINGS,
}  # fmt: skip
# The method that each axis has by default.
DEFAULT_METHODS = {
    "saliency": "stw", "granularity": "cag", "reconstruction": "none", "refinement": "none",
}  # fmt: skip
GLOBS = ("include", "exclude", "blocks")
_FEWEST_STEPS = 2  # a refinement that chooses the mask removes weights between two steps
_LEFT_OUT: Any = None


def _option(kind: type, text: str, metavar: str | None = None) -> dict[str, Any]:
    """What the command line needs for the option of a field."""
    return {"kind": kind, "help": text, "metavar": metavar}


@dataclass(frozen=True)
class Recipe:
    """What a run does; checked when it is made. The default is the paper's method at 50 %.

    The options combine freely, with two exceptions: N:M excludes an allocation and
    `mask="refinement"`, and a mask chosen by a reconstruction needs one. None leaves a word out.
    A method is given by name, by name with its constants as in
    `saliency={"name": "power", "weight_power": 3, "activation_power": 1}`, or as an object.

    Args:
        saliency: scores weights: `stw` (default), `magnitude`, `wanda`, `ria`, or `power` with
            the exponents `weight_power` of |W| and `activation_power` of the input norm. `ria`
            takes `activation_power` too.
        granularity: which weights compete: `layer`, `channel`, or `cag` (default), which takes
            `channel` for a target whose G_out is at least `cag_threshold`, else `layer`. An `NM`,
            or the word `pattern="2:4"`, keeps N of every M weights.
        sparsity: share of each group to remove, 0 ≤ sparsity < 1; None with an `NM`.
        include, exclude: globs over target names.
        auxiliary: also prune block lists beside the trunk, such as text refiners.
        reconstruction: how the kept weights of a layer are updated: `none` (default), `obs` or
            `admm`.
        mask: what chooses it: `saliency` (default); `reconstruction`, during the update; or
            `refinement`, where the last 8 % are removed during training.
        allocation: how the removal is shared among layers: `uniform` (default), `owl`,
            `sensitivity` or `proxy`.
        objective: the error that a reconstruction and `proxy` lower: of the `layer` (default) or
            the denoiser's `output`, estimated by gradients: tokens and channels count as
            much as it follows them.
        timestep_weighting: how much inputs count from noise to image: `uniform` (default) or
            `log-decrease`.
        refinement: gradient steps at the end: `none` (default) or `distill`.
        packages: number of runs of consecutive blocks. They are reconstructed one after the other,
            each from inputs that went through the blocks pruned before; 1 (default) reconstructs
            all from dense inputs. OBS-Diff, a rival in our tables, uses several.
        max_error: in place of `sparsity`: the largest relative error of the predicted noise. The
            largest share whose expected error stays below it is taken.
        blocks: globs over module paths that say where the transformer blocks are, as in
            `"double_blocks.*"`; by default they are found by their structure.
        pattern: an `NM`, or text such as `"2:4"`; stands for a granularity.
        preset: stands for several words: `paper` for the defaults, `fast` for a low
            error in closed form, `best` for the lowest.

    Raises RecipeError for impossible values and for choices that exclude each other.
    """

    saliency: Saliency = _LEFT_OUT
    granularity: Any = _LEFT_OUT
    sparsity: float | None = field(
        default=_LEFT_OUT, metadata=_option(float, "[default: 0.5] share of each group to remove")
    )
    include: tuple[str, ...] = field(
        default=_LEFT_OUT, metadata=_option(str, "take only these; repeatable", "GLOB")
    )
    exclude: tuple[str, ...] = field(
        default=_LEFT_OUT, metadata=_option(str, "leave these out; repeatable", "GLOB")
    )
    auxiliary: bool = field(
        default=_LEFT_OUT,
        metadata=_option(bool, "also prune block lists beside the trunk, such as text refiners"),
    )
    reconstruction: Reconstruction = _LEFT_OUT
    mask: str = _LEFT_OUT
    allocation: str = _LEFT_OUT
    objective: str = _LEFT_OUT
    timestep_weighting: str = _LEFT_OUT
    refinement: Distill | None = _LEFT_OUT
    packages: int = field(
        default=_LEFT_OUT,
        metadata=_option(
            int, "[default: 1] runs of blocks to reconstruct one after the other", "N"
        ),
    )
    max_error: float | None = field(
        default=_LEFT_OUT,
        metadata=_option(
            float, "in place of --sparsity: the largest relative error of the predicted noise"
        ),
    )
    blocks: tuple[str, ...] = field(default=_LEFT_OUT, metadata=_option(
        str, "[default: found] where the transformer blocks are, as in 'layers.*'; repeatable",
        "GLOB",
    ))  # fmt: skip
    pattern: InitVar[NM | str | None] = None
    preset: InitVar[str | None] = None

    def __post_init__(self, pattern: NM | str | None, preset: str | None) -> None:
        given = {part.name: getattr(self, part.name) for part in fields(self)}
        words = {word: value for word, value in given.items() if value is not None}
        if preset is not None:
            is_pattern = pattern is not None or isinstance(words.get("granularity"), NM)
            words = with_preset(preset, words, is_pattern)
        if pattern is not None:
            groups = pattern if isinstance(pattern, NM) else NM.parse(str(pattern))
            if words.setdefault("granularity", groups) != groups:
                raise excluded_by_pattern("granularity")
        for word, value in _resolved(words).items():
            object.__setattr__(self, word, value)
        self._check_update()
        if isinstance(self.granularity, NM):
            self._check_pattern()
        else:
            self._check_share()

    def _check_share(self) -> None:
        if self.max_error is None:
            share = DEFAULT_SPARSITY if self.sparsity is None else self.sparsity
            object.__setattr__(self, "sparsity", as_share(share))
            check_reachable(self.allocation, as_share(share))
            return
        object.__setattr__(self, "max_error", as_error(self.max_error))
        if self.sparsity is not None:
            raise RecipeError(
                f"--sparsity {self.sparsity} and --max-error {self.max_error} exclude each other: "
                "the error decides the share; pass one of them"
            )

    def _check_pattern(self) -> None:
        for word in ("sparsity", "max_error"):
            if getattr(self, word) is not None:
                raise excluded_by_pattern(word)
        if self.allocation != "uniform":
            raise RecipeError(
                f"--allocation {self.allocation} and --pattern exclude each other: N:M fixes the "
                "count of every layer; leave sensitive layers dense with --exclude"
            )
        if self.mask == "refinement":
            raise RecipeError(
                "--mask refinement and --pattern exclude each other: N:M leaves nothing to remove "
                "later; pass --mask reconstruction"
            )

    def _check_update(self) -> None:
        refinement, chooses = self.refinement, self.mask == "refinement"
        if self.mask != "saliency" and not self.reconstructs:
            raise RecipeError(
                f"--mask {self.mask} needs a reconstruction that chooses the mask; pass "
                "--reconstruction obs or admm, or leave --mask out"
            )
        if chooses and (refinement is None or refinement.num_steps < _FEWEST_STEPS):
            raise RecipeError(
                f"--mask refinement needs a refinement of at least {_FEWEST_STEPS} steps; pass "
                "--refinement distill, or --mask reconstruction"
            )
        if refinement is not None and refinement.held_back is not None and not chooses:
            raise RecipeError(
                f"held_back {refinement.held_back} is the share that the refinement removes; pass "
                "--mask refinement, or leave it out"
            )
        packages = whole("packages", self.packages)
        object.__setattr__(self, "packages", packages)
        if packages > 1 and not self.reconstructs:
            raise RecipeError(
                f"--packages {packages} says in which steps layers are reconstructed; pass "
                "--reconstruction obs or admm, or leave it out"
            )
        if self.objective != "layer" and not self.needs_grams:
            raise RecipeError(
                "--objective output needs a reconstruction or --allocation proxy; pass one of them"
            )
        sees_inputs = self.saliency.needs or self.reconstruction.needs
        if self.timestep_weighting != "uniform" and not sees_inputs:
            raise RecipeError(
                f"--timestep-weighting {self.timestep_weighting} weights the inputs of layers, and "
                f"--saliency {self.saliency.name} does not read them; leave it out"
            )

    def groups(self, g_out: float) -> Any:
        """The comparison groups of a target with this heterogeneity."""
        granularity = self.granularity
        return granularity.choose(g_out) if isinstance(granularity, CAG) else granularity

    @property
    def cag_threshold(self) -> float | None:
        """The G_out from which CAG prunes per channel; None for another granularity."""
        return float(self.granularity.cag_threshold) if isinstance(self.granularity, CAG) else None

    @property
    def reconstructs(self) -> bool:
        """Whether kept weights get new values layer by layer."""
        return not isinstance(self.reconstruction, Nothing)

    @property
    def updates_weights(self) -> bool:
        """Whether more is needed than weights and statistics, a layer at a time: the denoiser."""
        return self.reconstructs or self.allocation in MEASURED or self.refinement is not None

    @property
    def needs_calls(self) -> bool:
        """Whether the denoiser has to run on calibration calls; else statistics are enough."""
        is_measured = self.allocation == "sensitivity" or self.max_error is not None
        return self.needs_grams or is_measured or self.refinement is not None

    @property
    def needs_grams(self) -> bool:
        """Whether XᵀX of the targets' inputs is needed."""
        return Gram in self.reconstruction.needs or self.allocation == "proxy"

    def to_json(self) -> dict[str, Any]:
        """Plain values under the words that `build` takes; constants lie under their axis."""
        content = {part.name: _plain(part.name, getattr(self, part.name)) for part in fields(self)}
        is_pattern = isinstance(self.granularity, NM)
        shape = {"granularity": None, "pattern": self.granularity.name} if is_pattern else {}
        return {**content, "pattern": None, **shape}


def _pattern(recipe: Recipe) -> str | None:
    """The N:M pattern as text; None for another granularity."""
    return recipe.granularity.name if isinstance(recipe.granularity, NM) else None


# An argument only, for it stands for a granularity; but it can be read.
Recipe.pattern = property(_pattern)  # type: ignore[attr-defined]


def _resolved(words: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every field but the share, with defaults for the words that are left out."""
    values = {
        axis: choose(axis, words.get(axis, default), default)
        for axis, default in DEFAULT_METHODS.items()
    }
    for word in GLOBS:
        values[word] = as_globs(word, words.get(word, ()))
    for word, known in NAMES.items():
        values[word] = words.get(word, known[0])
        check_name(word, known, values[word])
    values["auxiliary"] = words.get("auxiliary", False)
    if not isinstance(values["auxiliary"], bool):
        raise RecipeError(f"--auxiliary {values['auxiliary']!r}: expected true or false")
    values["packages"] = words.get("packages", 1)
    return values


def _plain(word: str, value: Any) -> Any:
    if word in AXES:
        name = "none" if value is None else value.name
        return {"name": name, **constants_of(value)}
    return list(value) if isinstance(value, tuple) else value


def excluded_by_pattern(word: str) -> RecipeError:
    """The refusal of a word beside a pattern."""
    return RecipeError(
        f"{flag(word)} and --pattern exclude each other: N:M fixes the groups and the count; pass "
        "one of them"
    )
