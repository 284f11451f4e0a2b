"""Numbers as people read them."""

from __future__ import annotations

from ditprune.reporting import formats

METRIC = {"title": "PSNR", "unit": "dB", "digits": 1, "better": "higher"}


def test_a_metric_has_its_digits_its_interval_and_a_true_minus() -> None:
    one = {"value": -0.26, "low": -1.0, "high": 2.04}
    assert formats.with_interval(one, METRIC) == "−0.3 [−1.0, 2.0]"
    assert formats.with_interval({**one, "low": None}, METRIC) == "−0.3"
    assert formats.with_interval(None, METRIC) == "–"
    assert formats.titled(METRIC) == "PSNR (dB)"
    assert formats.direction(METRIC) == "higher is better"


def test_counts_bytes_seconds_and_shares() -> None:
    assert formats.count(5_578_736) == "5.58 M"
    assert formats.count(950) == "950"
    assert formats.count(None) == "–"
    assert formats.size(23_800_000_000) == "23.8 GB"
    assert formats.size(310_000) == "310 kB"
    assert formats.seconds(0.012345) == "0.0123 s"
    assert [formats.duration(s) for s in (4.2, 42, 210, 7560)] == [
        "4.2 s", "42 s", "3.5 min", "2.1 h",
    ]  # fmt: skip
    assert formats.percent(0.5) == "50 %"
    assert formats.percent(0.4998) == "50 %"
    assert formats.percent(0.499) == "49.9 %"
    assert formats.percent(1) == "100 %"


def test_a_change_is_against_dense() -> None:
    assert formats.change(53, 100) == "−47 %"
    assert formats.change(110, 100) == "+10 %"
    assert formats.change(100.01, 100) == "same"
    assert formats.change(None, 100) == formats.change(1, None) == formats.change(1, 0) == ""
