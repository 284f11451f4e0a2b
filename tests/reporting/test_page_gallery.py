"""Samples: the worst of the model that is shown come first, and what does not fit is the best."""

from __future__ import annotations

from test_page import render

from ditprune.reporting.sections import samples_of
from invented_results import NAMES, picture, results


def test_the_worst_come_first_for_each_model() -> None:
    samples = samples_of(results()["gallery"], NAMES, 10**9)
    assert [sample.index for sample in samples] == [10, 11, 12, 13, 14]
    by_second = sorted(samples, key=lambda sample: sample.shots[1].rank)
    assert [sample.index for sample in by_second] == [14, 13, 12, 11, 10]
    assert samples[0].shots[0].ssim == "0.900"


def test_a_sample_without_a_number_comes_last() -> None:
    gallery = results()["gallery"]
    gallery[0]["ssim"]["stw 50"] = None
    assert [s.index for s in samples_of(gallery, NAMES, 10**9)] == [11, 12, 13, 14, 10]


def test_a_sample_that_a_model_lacks_is_shown_for_the_others() -> None:
    gallery = results()["gallery"]
    del gallery[0]["images"]["stw 50"]
    samples = samples_of(gallery, NAMES, 10**9)
    (one,) = [sample for sample in samples if sample.index == 10]
    assert [shot.name for shot in one.shots] == ["magnitude 50"]
    del gallery[0]["images"]["magnitude 50"]
    assert len(samples_of(gallery, NAMES, 10**9)) == 4


def test_the_first_of_the_file_are_kept() -> None:
    samples = samples_of(results()["gallery"], NAMES, 7 * len(picture(255)))
    assert [sample.index for sample in samples] == [10, 11]


def test_a_long_seed_is_short_where_it_is_read() -> None:
    content = results()
    content["gallery"][0]["seed"], content["gallery"][1]["seed"] = 8123456789012345678, 42
    page = render(content)
    assert 'seed <abbr title="8123456789012345678">8123' in page
    assert page.count("8123456789012345678") == 1
    assert 'seed <abbr title="42">42</abbr>' in page
