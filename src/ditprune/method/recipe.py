"""What a run is: every choice in one frozen value that prints, compares and goes to JSON and back.

The command line's flags, the fields of `build` and the keys of the JSON are the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ditprune.errors import RecipeError, did_you_mean
from ditprune.method.allocation import ALLOCATIONS
from ditprune.method.choices import choose, constants_of, flag, globs, method_of, threshold_of
from ditprune.method.distill import REFINEMENTS, Distill
from ditprune.method.granularity import CAG, GRANULARITIES, NM
from ditprune.method.reconstruction import RECONSTRUCTIONS, Reconstruction
from ditprune.method.reconstruction.layer import Nothing
from ditprune.method.saliency import SALIENCIES, Saliency
from ditprune.method.saliency.power import STW
from ditprune.method.statistics.weighting import TIMESTEP_WEIGHTINGS

DEFAULT_SPARSITY = 0.5
# Words that belong to a choice made by another word, and are void when that one changes.
_CONSTANTS = {
    "saliency": {"weight_power", "activation_power"},
    "granularity": {"cag_threshold"},
    "reconstruction": {"reconstruction_constants"},
    "refinement": {"refinement_constants"},
}
MASKS = ("saliency", "reconstruction", "refinement")
# Words that are choices by themselves, the default first.
_WORDS: dict[str, tuple[str, ...]] = {
    "mask": MASKS, "allocation": ALLOCATIONS, "timestep_weighting": TIMESTEP_WEIGHTINGS,
}  # fmt: skip
# What one word stands for; what it does not name is the default.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {
        "reconstruction": "admm",
        "mask": "refinement",
        "allocation": "sensitivity",
        "refinement": "distill",
    },
}
_FEWEST_STEPS = 2  # of a refinement that chooses: it removes between two steps
# The words of grouping by share; a pattern stands in their place.
_BY_SHARE = {"sparsity", "granularity", "cag_threshold"}


@dataclass(frozen=True)
class Recipe:
    """The default is the paper's method at 50 %.

    Args:
        saliency: scores weights.
        granularity: who competes; an `NM` fixes the count and leaves `sparsity` None.
        sparsity: share of each group to remove, 0 ≤ sparsity < 1.
        include, exclude: globs over target names.
        auxiliary: also blocks outside the trunk, such as text refiners.
        reconstruction: how the kept weights of a layer are updated.
        mask: who chooses it, the `saliency`, the `reconstruction` itself, or that and for the last
            of the removal the `refinement`.
        allocation: how the total is shared among layers, a name in `ALLOCATIONS`.
        timestep_weighting: how much each part of the way from noise to image counts.
        refinement: gradient steps at the end; None for none.
        packages: runs of blocks that are reconstructed one after the other, each from inputs as
            the earlier ones leave them; 1 reconstructs all from dense inputs.
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

    def groups(self, g_out: float) -> Any:
        """Who competes in a target of this heterogeneity: CAG's choice, or the one granularity."""
        groups = self.granularity
        return groups.choose(g_out) if isinstance(groups, CAG) else groups

    @property
    def cag_threshold(self) -> float | None:
        """The G_out from which CAG prunes per channel; None for another granularity."""
        return float(self.granularity.cag_threshold) if isinstance(self.granularity, CAG) else None

    @property
    def updates_weights(self) -> bool:
        """Whether anything but the saliency's mask at one share is asked for."""
        return self.needs_calls or self.allocation != "uniform"

    @property
    def needs_calls(self) -> bool:
        """Whether it takes the denoiser itself and calibration calls, not statistics alone."""
        measures = self.allocation == "sensitivity"
        return self.needs_grams or measures or self.refinement is not None

    @property
    def needs_grams(self) -> bool:
        """Whether it takes XᵀX of the targets' inputs."""
        return bool(self.reconstruction.needs) or self.allocation == "proxy"

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names that `build` takes."""
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


# Every word that `build` and the JSON form take.
WORDS = (
    *(one.name for one in fields(Recipe)),
    "pattern",
    *(word for constants in _CONSTANTS.values() for word in sorted(constants)),
    "preset",
)


def build(recipe: Recipe | None = None, /, **words: Any) -> Recipe:
    """A recipe from words; a word that is missing or None takes the preset's value, else the
    default. A finished recipe is returned as it is, and excludes every word.

    Raises RecipeError for unknown words and names, impossible values and words that exclude each
    other.
    """
    if not isinstance(recipe, Recipe | None):
        raise RecipeError(f"recipe: {recipe!r} given; expected a Recipe; give words by name")
    for word in words:
        if word not in WORDS:
            raise RecipeError(f"'{word}' is no word of a recipe; {did_you_mean(word, WORDS)}")
    given = {word: value for word, value in words.items() if value is not None}
    if recipe is not None:
        if given:
            raise RecipeError(
                f"recipe and {next(iter(given))} exclude each other; pass one of them"
            )
        return recipe
    is_pattern = "pattern" in given or isinstance(given.get("granularity"), NM)
    if "preset" in given:
        given = preset_words(given["preset"], is_pattern) | given
    chosen = choose(
        "saliency", SALIENCIES, given.get("saliency", "stw"),
        {power: given.get(power) for power in ("weight_power", "activation_power")},
    )  # fmt: skip
    updating = _update_words(given)
    sees_inputs = bool(chosen.needs or updating["reconstruction"].needs)
    if updating["timestep_weighting"] != "uniform" and not sees_inputs:
        raise RecipeError(
            f"--timestep-weighting {updating['timestep_weighting']} weights the inputs of layers, "
            f"and --saliency {chosen.name} looks at none; leave it out"
        )
    auxiliary = given.get("auxiliary", False)
    if auxiliary not in (True, False):
        raise RecipeError(f"--auxiliary {auxiliary!r}: expected true or false")
    groups, share = _pattern(given) if is_pattern else _by_share(given)
    targets = (globs("include", given.get("include")), globs("exclude", given.get("exclude")))
    return Recipe(chosen, groups, share, *targets, bool(auxiliary), **updating)


def _pattern(given: Mapping[str, Any]) -> tuple[NM, None]:
    """The groups of an N:M pattern, which leaves no other word of grouping."""
    pattern, others = given.get("pattern"), dict(given)
    if pattern is None:
        pattern = others.pop("granularity")
    for option in ("sparsity", "granularity", "cag_threshold"):
        if option in others:
            raise RecipeError(
                f"{flag(option)} and --pattern exclude each other: N:M fixes the groups and "
                "the count; pass one of them"
            )
    if others.get("allocation", "uniform") != "uniform":
        raise RecipeError(
            f"--allocation {others['allocation']} and --pattern exclude each other: N:M fixes the "
            "count of every layer; leave sensitive layers dense with --exclude"
        )
    if others.get("mask") == "refinement":
        raise RecipeError(
            "--mask refinement and --pattern exclude each other: N:M leaves nothing to remove "
            "later; pass --mask reconstruction"
        )
    return pattern if isinstance(pattern, NM) else NM.parse(str(pattern)), None


def _by_share(given: Mapping[str, Any]) -> tuple[Any, float]:
    """The granularity, and the share that is removed."""
    sparsity = given.get("sparsity", DEFAULT_SPARSITY)
    is_number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not is_number or not 0 <= sparsity < 1:
        raise RecipeError(
            f"--sparsity {sparsity}: expected the removed share, 0 ≤ sparsity < 1, as in 0.5"
        )
    constants = {"cag_threshold": threshold_of(given.get("cag_threshold"))}
    groups = choose("granularity", GRANULARITIES, given.get("granularity", "cag"), constants)
    return groups, float(sparsity)


def preset_words(preset: str, is_pattern: bool) -> dict[str, Any]:
    """What a preset stands for. Raises RecipeError for an unknown one."""
    if preset not in PRESETS:
        raise RecipeError(f"--preset '{preset}' is unknown; {did_you_mean(preset, PRESETS)}")
    words = dict(PRESETS[preset])
    # N:M fixes each layer's count, and leaves nothing to remove later.
    fixed = {"allocation": "uniform", "mask": "reconstruction"}
    return words | {word: fixed[word] for word in words if word in fixed} if is_pattern else words


def _update_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked fields of a recipe that say how the kept weights are updated."""
    method, refine = (
        method_of(word, choices, given.get(word), given.get(f"{word}_constants"))
        for word, choices in (("reconstruction", RECONSTRUCTIONS), ("refinement", REFINEMENTS))
    )
    words = {word: given.get(word, known[0]) for word, known in _WORDS.items()}
    for word, value in words.items():
        if value not in _WORDS[word]:
            hint = did_you_mean(str(value), _WORDS[word])
            raise RecipeError(f"{flag(word)} '{value}' is unknown; {hint}")
    if refine is not None and not isinstance(refine, Distill):
        raise RecipeError(f"--refinement {refine!r}: expected none, distill, or a Distill(…)")
    if words["mask"] != "saliency" and not method.needs:
        raise RecipeError(
            f"--mask {words['mask']} needs a reconstruction that chooses one; "
            "pass --reconstruction obs or admm, or leave --mask out"
        )
    if words["mask"] == "refinement" and (refine is None or refine.num_steps < _FEWEST_STEPS):
        raise RecipeError(
            f"--mask refinement needs one of at least {_FEWEST_STEPS} steps; pass --refinement "
            "distill, or --mask reconstruction"
        )
    if refine is not None and refine.held_back is not None and words["mask"] != "refinement":
        raise RecipeError(
            f"held_back {refine.held_back} is the share that the refinement removes; pass --mask "
            "refinement, or leave it out"
        )
    packages = given.get("packages", 1)
    if isinstance(packages, bool) or not isinstance(packages, int) or packages < 1:
        raise RecipeError(f"--packages {packages!r}: expected a number of packages, from 1 up")
    if packages > 1 and not method.needs:
        raise RecipeError(
            f"--packages {packages} says in which steps layers are reconstructed; pass "
            "--reconstruction obs or admm, or leave it out"
        )
    return {"reconstruction": method, "refinement": refine, "packages": packages, **words}


def from_json(content: Any, source: str, **overrides: Any) -> Recipe:
    """The recipe that `to_json` wrote, with some words replaced (an override of None is none).

    Raises RecipeError naming `source`.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(f"{source}: holds {type(content).__name__}, expected a JSON object")
    for key in content:
        if key not in WORDS:
            raise RecipeError(f"{source}: unknown key '{key}'; {did_you_mean(str(key), WORDS)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    if "preset" in given:
        words = preset_words(
            given.pop("preset"), bool(given.get("pattern") or content.get("pattern"))
        )
        given = {**words, **given}
    void: set[str] = set()
    for word, constants in _CONSTANTS.items():
        if word in given:
            void |= constants
    # Another way of grouping replaces the one in the file.
    if "pattern" in given:
        void |= _BY_SHARE
    elif given.keys() & _BY_SHARE:
        void |= {"pattern"}
    content = {key: value for key, value in content.items() if key not in void}
    try:
        return build(**{**content, **given})
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None
