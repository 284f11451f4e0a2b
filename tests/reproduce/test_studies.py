"""The studies as data: rows for every setting, and nothing that no study acts on."""

from __future__ import annotations

import pytest

from ditprune.errors import RecipeError
from ditprune.reproduce.rows import Options, rows_of, studies_of
from ditprune.reproduce.studies import PAPER_FIGURES, STUDIES, paper_of

MEASURED = [study for study in STUDIES.values() if study.methods]


def test_main_has_every_method_at_every_sparsity_and_step() -> None:
    rows = rows_of(STUDIES["main"], Options(sparsities=(0.4, 0.5), steps=(4, 2)), True)
    assert [
        (row.method, row.setting()["sparsity"], row.protocol.num_inference_steps) for row in rows
    ] == [
        (name, sparsity, steps)
        for steps in (4, 2)
        for name, sparsity in [
            ("dense", 0.0),
            *((name, s) for s in (0.4, 0.5) for name in ("magnitude", "Wanda", "DiT-Pruning")),
        ]
    ]
    # A calibration is of the sampler that draws.
    assert all(r.sampling.num_inference_steps == r.protocol.num_inference_steps for r in rows)


@pytest.mark.parametrize("study", MEASURED, ids=lambda study: study.name)
def test_every_claim_names_methods_of_its_study(study) -> None:
    names = {method.name for method in study.methods}
    assert names >= {name for claim in study.claims for name in (claim.first, claim.second)}
    assert study.claims


@pytest.mark.parametrize("study", PAPER_FIGURES)
def test_the_papers_lines_bear_the_names_of_ours(study) -> None:
    names = {method.name for method in STUDIES[study].methods} | {"dense"}
    assert {
        line["method"] for figures in PAPER_FIGURES[study] for line in figures["lines"]
    } <= names
    assert paper_of(study)["source"].startswith("arXiv 2607.00927v2, Table")


def test_the_recipes_are_those_of_the_paper() -> None:
    def recipes(name: str) -> dict[str, dict]:
        rows = rows_of(STUDIES[name], Options(), True)
        return {
            f"{r.recipe.to_json()['pattern'] or ''}{r.method}": r.recipe.to_json()
            for r in rows
            if r.recipe
        }

    ablation = recipes("ablation")
    assert [
        (r["saliency"]["name"], r["granularity"]["name"], r["sparsity"]) for r in ablation.values()
    ] == [
        ("wanda", "channel", 0.5), ("stw", "channel", 0.5), ("stw", "cag", 0.5),
    ]  # fmt: skip
    assert list(recipes("nm")) == [
        f"{pattern}{name}" for pattern in ("2:4", "4:8") for name in ("magnitude", "Wanda", "STW")
    ]
    powers = [
        (r["saliency"].get("weight_power", 2), r["saliency"].get("activation_power", 1))
        for r in recipes("exponents").values()
    ]
    assert powers == [(0.5, 1), (1, 1), (2, 1), (3, 1)]
    parts = {r.method: r.sampling.timesteps for r in rows_of(STUDIES["timesteps"], Options(), True)}
    assert parts == {
        "dense": "uniform", "early": "early", "middle": "middle", "late": "late", "all": "uniform",
    }  # fmt: skip


def test_another_model_has_its_pipelines_own_steps_and_guidance() -> None:
    (steps,) = {r.protocol.num_inference_steps for r in rows_of(STUDIES["main"], Options(), False)}
    assert steps is None
    assert {r.protocol.guidance_scale for r in rows_of(STUDIES["nm"], Options(), False)} == {None}
    scales = {r.protocol.guidance_scale for r in rows_of(STUDIES["guidance"], Options(), False)}
    assert len(scales) > 2


def test_sizes_replace_those_of_the_study() -> None:
    rows = rows_of(STUDIES["calibration-size"], Options(sizes=(4, 8)), True)
    assert [(r.method, r.sampling.num_samples) for r in rows[1:]] == [
        ("4 samples", 4), ("8 samples", 8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("study", "options", "words"),
    [
        ("nm", {"sparsities": (0.4,)}, "sparsities: the study 'nm' does not vary it"),
        ("calibration-size", {"num_samples": 4}, "num_samples: .*calibration-size"),
        ("main", {"sizes": (4,)}, r"sizes: .* \(calibration-size\)"),
        ("main", {"layers": ("*",)}, "include"),
        ("statistics", {"num_images": 4}, "num_images"),
        ("statistics", {"steps": (2, 4)}, "steps: the study 'statistics' looks at one"),
    ],
)
def test_what_a_study_does_not_act_on_is_refused(study, options, words) -> None:
    with pytest.raises(RecipeError, match=words):
        Options(**options).check(STUDIES[study])


def test_all_gives_each_study_what_it_acts_on() -> None:
    given = Options(
        num_images=2, sparsities=(0.3,), steps=(2, 4), sizes=(4,), num_samples=8, layers=("*",),
        seed=7,
    )  # fmt: skip
    for study in STUDIES.values():
        own = given.for_study(study)
        own.check(study)
        assert own.seed == 7
        assert (own.sparsities is None) == ("sparsities" not in study.takes)
    assert given.for_study(STUDIES["importance"]).steps == (2,)


def test_an_unknown_study_is_refused_with_the_nearest_name() -> None:
    assert [study.name for study in studies_of("all")] == list(STUDIES)
    with pytest.raises(RecipeError, match="did you mean 'ablation'"):
        studies_of("ablatoin")
