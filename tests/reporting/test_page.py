"""The page is one file that asks the network for nothing and shows untrusted words as words."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest

from ditprune.errors import ResultsError
from ditprune.reporting import page, plots
from ditprune.reporting.load import check
from invented_results import picture, results

HOSTILE = "</script></style><script>alert(1)</script>\"' onerror=x <img src=http://x.example/>"


@cache
def plain() -> str:
    return render(results())


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] not in ("style", "script"):
            self.text += data

    def words(self) -> str:
        return " ".join(self.text.split())

    def names(self) -> list[str]:
        return [tag for tag, _ in self.found]


DRAWN: dict[str, str] = {}


def drawn_once(draw: Any) -> Any:
    """The same plots, each drawn once: matplotlib takes most of the time of a page."""

    def plot(*args: Any) -> str:
        name = json.dumps([draw.__name__, *args])
        if name not in DRAWN:
            DRAWN[name] = draw(*args)
        return DRAWN[name]

    return plot


def render(content: dict[str, Any]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for draw in (plots.quality, plots.timesteps):
            patch.setattr(plots, draw.__name__, drawn_once(draw))
        return page.render(check(content, "here"))


def test_nothing_is_fetched_and_only_the_own_script_runs() -> None:
    tags = Tags(plain()).found
    for _, attributes in tags:
        for key in ("src", "href", "xlink:href"):
            assert re.match(r"data:|#", attributes.get(key) or "#"), attributes
        assert not any(key.startswith("on") for key in attributes)
    assert [tag for tag, _ in tags].count("script") == 1
    (policy,) = [a["content"] for _, a in tags if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy


def spoiled(value: Any, key: str = "") -> Any:
    """Every text that is free, with markup in it."""
    if isinstance(value, dict):
        return {
            name: one if name in ("images", "ssim") else spoiled(one, name)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [spoiled(one, key) for one in value]
    is_word = key in ("better", "against", "granularity") or value is None
    return value + HOSTILE if isinstance(value, str) and not is_word else value


def test_names_prompts_and_all_other_words_are_escaped() -> None:
    honest, hostile = results(), spoiled(results())
    for before, after in zip(honest["models"], hostile["models"], strict=True):
        after["name"] = before["name"]
        for target in after["targets"]:
            target["name"] = f"blocks{HOSTILE.replace('.', '')}.{target['depth']}.{target['role']}"
    before, after = Tags(plain()), Tags(render(hostile))
    assert after.names() == before.names()
    assert [sorted(a) for _, a in after.found] == [sorted(a) for _, a in before.found]
    assert after.text.count("<script>alert(1)</script>") > 50


def test_keys_are_escaped_too() -> None:
    content = results()
    times = dict.fromkeys(("dense_fp32_ms", "dense_bf16_ms", "sparse_fp32_ms", "sparse_bf16_ms"), 1)
    timed = {
        "model": HOSTILE, "device": HOSTILE, "num_threads": 1, "instruction_set": HOSTILE,
        "notes": [HOSTILE], "layers_together": {**times, "pays": HOSTILE}, "layers": [],
        "steps": {HOSTILE: {**times, "pays": True}, "b": {"reason": HOSTILE}},
    }  # fmt: skip
    content["bench"] = timed
    content["metrics"][HOSTILE] = {**content["metrics"]["fid"], "note": HOSTILE}
    for model in content["models"]:
        model["metrics"][HOSTILE] = model["metrics"]["fid"]
        model["told"], model["calibrate_command"] = [HOSTILE], HOSTILE
    content["protocol"][HOSTILE] = {HOSTILE: [HOSTILE]}
    content["models"][1]["recipe"] = {HOSTILE: HOSTILE}
    tags = Tags(render(content))
    assert tags.names().count("script") == 1
    assert not any(key.startswith("on") for _, attributes in tags.found for key in attributes)
    assert not any("x.example" in (a.get("src") or "") for _, a in tags.found)
    assert tags.text.count("<script>alert(1)</script>") >= 12


def test_the_name_of_a_model_is_escaped_everywhere() -> None:
    before = Tags(plain())
    hostile = json.loads(json.dumps(results()).replace("stw 50", json.dumps(HOSTILE)[1:-1]))
    after = Tags(render(hostile))
    assert after.names() == before.names()
    assert HOSTILE in after.text


def test_it_says_the_verdict_the_warnings_and_what_was_not_measured() -> None:
    text = Tags(plain()).words()
    assert (
        "stw 50: not told apart from dense by 1,000 images; magnitude 50: visibly worse than"
        " dense." in text
    )
    assert "stw 50: FID of stw 50 is below dense" in text
    assert "CLIP score: no CLIP weights; pass --clip FOLDER" in text
    assert "0.072 [0.060, 0.088]" in text
    assert "3.35 M −40 %" in text
    assert "ditprune prune bundled -o 'magnitude 50'" in text
    assert "ditprune evaluate bundled 'stw 50' 'magnitude 50' -o evaluation" in text
    assert "feature extractor the classifier" in text


def test_layers_stand_by_role_and_depth() -> None:
    text = Tags(plain()).words()
    assert "transformer_blocks: weights removed (%) depth 0 1 2 3 4 5 6 7 norm1.linear 50" in text
    assert "attn1.to_q 0.40 L 0.45 L 0.50 L 0.55 L 0.60 L 0.65 C" in text


def test_plots_have_words_for_those_who_do_not_see_them() -> None:
    figures = [a for tag, a in Tags(plain()).found if a.get("role") == "img"]
    assert len(figures) == 6
    (fid,) = [a for a in figures if (a["aria-label"] or "").startswith("FID")]
    assert fid["aria-label"] == (
        "FID against the share of weights removed: dense 0.083 [0.070, 0.100] at 0 %; "
        "stw 50 0.072 [0.060, 0.088] at 50 %; magnitude 50 0.655 [0.610, 0.700] at 50 %"
    )


@pytest.mark.parametrize("key", ["gallery", "metrics", "targets", "error_by_timestep", "bench"])
def test_what_is_not_there_leaves_no_hole(key: str) -> None:
    content = results()
    if key == "metrics":
        content["metrics"] = {}
    elif key in content:
        content[key] = []
    else:
        for model in content["models"]:
            model[key] = []
    tags = Tags(render(content))
    links = {a["href"] for tag, a in tags.found if tag == "a"}
    ids = {a.get("id") for _, a in tags.found}
    assert {link[1:] for link in links if link} <= ids
    assert {"gallery": "#gallery", "targets": "#layers"}.get(key) not in links


def test_timings_of_layers_are_a_table() -> None:
    times = {"dense_fp32_ms": 1.2345, "dense_bf16_ms": None, "sparse_fp32_ms": 0.5,
             "sparse_bf16_ms": None, "pays": True}  # fmt: skip
    row = {"layer": "blocks.0.to_q", "num_layers": 8, "shape": [160, 160], "num_tokens": 32,
           "sparsity": 0.5, **times}  # fmt: skip
    timed = {
        "model": "half", "device": "cpu", "num_threads": 2, "instruction_set": "avx512",
        "layers": [row], "layers_together": {**times, "pays": False},
        "steps": {"transformer": times, "other": {"reason": "it does not fit"}},
        "notes": ["4:8 has no GPU kernel"],
    }  # fmt: skip
    text = Tags(render(check({**results(), "bench": timed}, "here"))).words()
    assert "half on cpu, threads: 2, avx512." in text
    assert "blocks.0.to_q and 7 more 160×160 32 50 % 1.23 – 0.5 – yes" in text
    assert "all layers, each on its faster side – – – 1.23 – 0.5 – no" in text
    assert "a whole call of transformer – – – 1.23 – 0.5 – yes" in text
    assert "other: no whole call was timed: it does not fit." in text
    assert "4:8 has no GPU kernel." in text


def test_a_gallery_that_is_too_large_loses_its_least_bad_and_says_so() -> None:
    content = results(24)
    for sample in content["gallery"]:
        for name in sample["images"]:
            sample["images"][name] = picture(5).rstrip("=") + "A" * 200_000
    made = render(content)
    assert 4_000_000 < len(made.encode()) <= page.MOST_BYTES
    shown = len(re.findall(r'<div class="compare', made))
    assert 0 < shown < 24
    text = Tags(made).words()
    assert f"{24 - shown} less different samples were left out" in text
    assert "seed 1000" in text
    assert "seed 1023" not in text


def test_results_that_fit_no_page_are_refused() -> None:
    content = results()
    content["models"][1]["warnings"] = ["x" * page.MOST_BYTES]
    with pytest.raises(ResultsError, match="the page would take 5"):
        render(content)


def test_long_lists_of_the_protocol_are_cut() -> None:
    content = results()
    content["protocol"]["prompts"] = [f"prompt {number}" for number in range(30_000)]
    made = render(content)
    assert "prompt 7 … (30000 in all)" in made
    assert "prompt 8" not in made


def test_the_same_results_give_the_same_page() -> None:
    assert page.render(results()) == plain()
