"""What does a run do? Every choice in one checked value, from words or objects, to JSON and back.

A word is a field of `Recipe` or a constant of a method. The command line, `prune_`, `build` and the
JSON form in ditprune.json take the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ditprune.errors import RecipeError, did_you_mean
from ditprune.method.allocation import ALLOCATIONS
from ditprune.method.choices import (
    as_globs,
    as_share,
    check_name,
    check_object,
    choose,
    constants_of,
    flag,
    preset_words,
)
from ditprune.method.distill import REFINEMENTS, Distill
from ditprune.method.granularity import CAG, GRANULARITIES, NM
from ditprune.method.reconstruction import RECONSTRUCTIONS, Reconstruction
from ditprune.method.reconstruction.layer import Nothing
from ditprune.method.saliency import SALIENCIES, Saliency
from ditprune.method.saliency.power import STW
from ditprune.method.statistics.collected import TIMESTEP_WEIGHTINGS

DEFAULT_SPARSITY = 0.5
MASKS = ("saliency", "reconstruction", "refinement")
# The fields that hold one of a few names; the first name is the default.
_NAMES = {"mask": MASKS, "allocation": ALLOCATIONS, "timestep_weighting": TIMESTEP_WEIGHTINGS}
# The words that hold constants of a method; they are dropped when a word replaces the method.
_CONSTANTS: dict[str, tuple[str, ...]] = {
    "saliency": ("weight_power", "activation_power"),
    "granularity": ("cag_threshold",),
    "reconstruction": ("reconstruction_constants",),
    "refinement": ("refinement_constants",),
}
# The words of grouping by share; a pattern replaces them.
_BY_SHARE = {"sparsity", "granularity", "cag_threshold"}
_FEWEST_STEPS = 2  # a refinement that chooses the mask removes weights between two steps


@dataclass(frozen=True)
class Recipe:
    """What a run does. The default is the paper's method at 50 %.

    The options combine freely, with two exceptions: N:M excludes an allocation and
    `mask="refinement"`, and a mask chosen by a reconstruction needs one. As words, methods are
    given by name (`saliency="power"`) with their constants beside them.

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
            `admm`, with `reconstruction_constants` (a mapping).
        mask: what chooses it: `saliency` (default); `reconstruction`, during the update; or
            `refinement`, where the last 8 % are removed during training.
        allocation: how the removal is shared among layers: `uniform` (default), `owl`,
            `sensitivity` or `proxy`.
        timestep_weighting: how much inputs count from noise to image: `uniform` (default) or
            `log-decrease`.
        refinement: gradient steps at the end: `none` (None, the default) or `distill`, with
            `refinement_constants` (a mapping).
        packages: number of runs of consecutive blocks. They are reconstructed one after the other,
            each from inputs that went through the blocks pruned before; 1 (default) reconstructs
            all from dense inputs. OBS-Diff, a rival in our tables, uses several.

    The word `preset` stands for several: `paper` for the defaults, `best` for the lowest error.

    Raises RecipeError for impossible values and for choices that exclude each other.
    """

    saliency: Saliency = field(default_factory=STW)
    granularity: Any = field(default_factory=CAG)
    sparsity: float | None = DEFAULT_SPARSITY
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    auxiliary: bool = False
    reconstruction: Reconstruction = field(default_factory=Nothing)
    mask: str = "saliency"
    allocation: str = "uniform"
    timestep_weighting: str = "uniform"
    refinement: Distill | None = None
    packages: int = 1

    def __post_init__(self) -> None:
        check_object("saliency", SALIENCIES, self.saliency)
        check_object("granularity", GRANULARITIES, self.granularity)
        check_object("reconstruction", RECONSTRUCTIONS, self.reconstruction)
        for word in ("include", "exclude"):
            object.__setattr__(self, word, as_globs(word, getattr(self, word)))
        for word, known in _NAMES.items():
            check_name(word, known, getattr(self, word))
        if not isinstance(self.auxiliary, bool):
            raise RecipeError(f"--auxiliary {self.auxiliary!r}: expected true or false")
        self._check_update()
        if isinstance(self.granularity, NM):
            self._check_pattern()
        else:
            object.__setattr__(self, "sparsity", as_share(self.sparsity))

    def _check_pattern(self) -> None:
        if self.sparsity is not None:
            raise _excluded_by_pattern("sparsity")
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
        if refinement is not None and not isinstance(refinement, Distill):
            raise RecipeError(
                f"--refinement {refinement!r}: expected none, distill or a Distill(…)"
            )
        if self.mask != "saliency" and not self.reconstruction.needs:
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
        packages = self.packages
        if isinstance(packages, bool) or not isinstance(packages, int) or packages < 1:
            raise RecipeError(f"--packages {packages!r}: expected a number of packages, from 1 up")
        if packages > 1 and not self.reconstruction.needs:
            raise RecipeError(
                f"--packages {packages} says in which steps layers are reconstructed; pass "
                "--reconstruction obs or admm, or leave it out"
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
    def updates_weights(self) -> bool:
        """Whether more is needed than the saliency's mask at one share for all layers."""
        return self.needs_calls or self.allocation != "uniform"

    @property
    def needs_calls(self) -> bool:
        """Whether the denoiser has to run on calibration calls; else statistics are enough."""
        is_measured = self.allocation == "sensitivity"
        return self.needs_grams or is_measured or self.refinement is not None

    @property
    def needs_grams(self) -> bool:
        """Whether XᵀX of the targets' inputs is needed."""
        return bool(self.reconstruction.needs) or self.allocation == "proxy"

    def to_json(self) -> dict[str, Any]:
        """Plain values under the words that `build` takes."""
        is_pattern = isinstance(self.granularity, NM)
        return {
            "saliency": self.saliency.name,
            **constants_of(self.saliency),
            "granularity": None if is_pattern else self.granularity.name,
            **({} if is_pattern else constants_of(self.granularity)),
            "sparsity": self.sparsity,
            "pattern": self.granularity.name if is_pattern else None,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "auxiliary": self.auxiliary,
            "reconstruction": self.reconstruction.name,
            "reconstruction_constants": constants_of(self.reconstruction),
            "mask": self.mask,
            "allocation": self.allocation,
            "timestep_weighting": self.timestep_weighting,
            "refinement": "none" if self.refinement is None else self.refinement.name,
            "refinement_constants": constants_of(self.refinement),
            "packages": self.packages,
        }


# The keys of the JSON form. `build` also takes `preset`.
WORDS = (
    *(recipe_field.name for recipe_field in fields(Recipe)),
    *(word for constants in _CONSTANTS.values() for word in constants),
    "pattern",
)


def build(recipe: Recipe | None = None, /, **words: Any) -> Recipe:
    """A recipe from words, which `Recipe` explains; None leaves a word out.

    A finished recipe is returned as it is; no word may stand beside it.

    Raises RecipeError for unknown words and names, and for all that a `Recipe` refuses.
    """
    known = (*WORDS, "preset")
    for word in words:
        if word not in known:
            raise RecipeError(f"'{word}' is no word of a recipe; {did_you_mean(word, known)}")
    given = {word: value for word, value in words.items() if value is not None}
    if recipe is not None:
        if given or not isinstance(recipe, Recipe):
            raise RecipeError(
                f"recipe: {recipe!r} and {given} given; expected a Recipe alone, or words by name"
            )
        return recipe
    is_pattern = "pattern" in given or isinstance(given.get("granularity"), NM)
    if "preset" in given:
        given = preset_words(given.pop("preset"), is_pattern) | given
    if "pattern" in given:
        given = _with_pattern(given)
    values = {"saliency": "stw", "granularity": "cag", **given}
    for word, methods in {"saliency": SALIENCIES, "granularity": GRANULARITIES}.items():
        constants = {name: given[name] for name in _CONSTANTS[word] if name in given}
        values[word] = choose(word, methods, values[word], constants)
    for word, methods in {"reconstruction": RECONSTRUCTIONS, "refinement": REFINEMENTS}.items():
        constants = given.get(f"{word}_constants", {})
        values[word] = choose(word, methods, given.get(word, "none"), constants)
    if is_pattern:
        values.setdefault("sparsity", None)
    return Recipe(
        **{part.name: values[part.name] for part in fields(Recipe) if part.name in values}
    )


def from_json(content: Any, source: str, **overrides: Any) -> Recipe:
    """The recipe that `to_json` wrote, with some words replaced; an override of None does nothing.

    Raises RecipeError that names `source`.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(f"{source}: holds {type(content).__name__}, expected a JSON object")
    for key in content:
        if key not in WORDS:
            raise RecipeError(f"{source}: unknown key '{key}'; {did_you_mean(str(key), WORDS)}")
    given = {word: value for word, value in overrides.items() if value is not None}
    if "preset" in given:
        is_pattern = bool(given.get("pattern") or content.get("pattern"))
        given = preset_words(given.pop("preset"), is_pattern) | given
    replaced = {constant for word in given for constant in _CONSTANTS.get(word, ())}
    if "pattern" in given:
        replaced |= _BY_SHARE
    elif given.keys() & _BY_SHARE:
        replaced.add("pattern")
    stays = {key: value for key, value in content.items() if key not in replaced}
    try:
        return build(**{**stays, **given})
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def _with_pattern(given: Mapping[str, Any]) -> dict[str, Any]:
    """The words with the pattern as their granularity."""
    for word in ("granularity", "cag_threshold"):
        if word in given:
            raise _excluded_by_pattern(word)
    pattern = given["pattern"]
    return {**given, "granularity": pattern if isinstance(pattern, NM) else NM.parse(str(pattern))}


def _excluded_by_pattern(word: str) -> RecipeError:
    return RecipeError(
        f"{flag(word)} and --pattern exclude each other: N:M fixes the groups and the count; pass "
        "one of them"
    )
