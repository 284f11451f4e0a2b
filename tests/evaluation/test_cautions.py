"""What a reader is warned of: small samples, and numbers better than dense."""

from __future__ import annotations

from ditprune.evaluation.cautions import Numbers, cautions_of
from ditprune.evaluation.metrics.interval import Interval

WIDTHS = (64, 448)


def said(own: dict[str, Interval], dense: dict[str, Interval], num_images: int = 1000,
         **others: dict[str, Interval]) -> list[str]:  # fmt: skip
    models = {"dense": dense, **others, "own": own}
    found = {name: Numbers(intervals) for name, intervals in models.items()}
    return cautions_of("own", found, num_images, WIDTHS)


def test_a_distance_below_dense_is_told() -> None:
    dense = {"fid": Interval(0.083, 0.07, 0.10)}
    assert said({"fid": Interval(0.055, 0.04, 0.08)}, dense) == [
        "FID 0.055 is below dense 0.083, and the intervals overlap: 1,000 images cannot tell "
        "them apart"
    ]
    (apart,) = said({"fid": Interval(0.055, 0.05, 0.06)}, dense)
    assert apart.startswith("FID 0.055 is below dense 0.083, and the intervals do not overlap")
    assert said({"fid": Interval(0.2, 0.15, 0.25)}, dense) == []


def test_what_overlaps_with_dense_is_told_once() -> None:
    dense = {"accuracy": Interval(0.99, 0.98, 1), "inception_score": Interval(9, 8.5, 9.5)}
    own = {"accuracy": Interval(0.985, 0.97, 0.995), "inception_score": Interval(7, 6.5, 7.5)}
    assert said(own, dense, 500) == ["500 images cannot tell it from dense by accuracy"]
    assert said(dense, dense) == []  # the same numbers claim no difference


def test_what_is_taken_against_dense_is_not_compared_with_it() -> None:
    assert said({"ssim": Interval(0.9, 0.8, 1.0)}, {"ssim": Interval(0.95, 0.9, 1)}) == []


def test_models_that_nothing_tells_apart_are_told() -> None:
    other = {"ssim": Interval(0.95, 0.94, 0.96), "psnr": Interval(25, 24.9, 25.1)}
    own = {"ssim": Interval(0.955, 0.945, 0.965), "psnr": Interval(27, 26.9, 27.1)}
    assert said(own, {}, other=other) == ["1,000 images cannot tell it from other by SSIM"]
    models = {"dense": Numbers({}), "own": Numbers(own), "other": Numbers(other)}
    assert cautions_of("own", models, 1000, WIDTHS) == []  # once, with the later one


def test_fewer_images_than_features_are_told_of_every_model() -> None:
    own = {"fid": Interval(3, 1, 5), "sfid": Interval(3, 1, 5)}
    (line,) = cautions_of("dense", {"dense": Numbers(own)}, 100, WIDTHS)
    assert line.startswith("sFID of 100 images in 448 features")
    assert len(cautions_of("dense", {"dense": Numbers(own)}, 60, WIDTHS)) == 2
    assert cautions_of("dense", {"dense": Numbers(own)}, 449, WIDTHS) == []


def test_the_same_items_are_compared_one_by_one() -> None:
    """Intervals overlap since items differ in difficulty; each item is a little worse."""
    hard = [i / 10 for i in range(50)]
    wide = {"ssim": Interval(2.45, 2.0, 2.9)}, {"ssim": Interval(2.44, 2.0, 2.9)}
    models = {
        "dense": Numbers({}),
        "a": Numbers(wide[0], {"ssim": hard}),
        "own": Numbers(wide[1], {"ssim": [value - 0.01 for value in hard]}),
    }
    assert cautions_of("own", models, 50, WIDTHS) == []
    mixed = [value + (0.5 if i % 2 else -0.52) for i, value in enumerate(hard)]
    models["own"] = Numbers(wide[1], {"ssim": mixed})
    assert cautions_of("own", models, 50, WIDTHS) == ["50 images cannot tell it from a by SSIM"]
