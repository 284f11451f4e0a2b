"""The page in headless Chromium: the slider, the choice of a model, the phone, both schemes.

Stored pictures (`shots/`) are of parts that hold no text, small, compared with a tolerance. To make
them anew, delete them, run this file, look at them.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ditprune.reporting.load import check
from ditprune.reporting.page import render
from invented_results import picture, results

SHOTS = Path(__file__).parent / "shots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Of 0–255, in the mean, and what the fewest may exceed: other versions smooth edges in other ways.
TOLERANCE, MOST_AT_EDGES, FEWEST = 3, 48, 0.005
# Fonts differ from machine to machine.
WITHOUT_WORDS = """
text { visibility: hidden }
.compare::after { color: transparent !important; text-shadow: none !important }
figcaption { color: transparent; height: 20px; overflow: hidden }
.heat * { color: transparent !important; text-decoration: none !important }
.heat :is(th, td) {
  font: 10px/20px monospace !important; min-width: 40px !important; max-width: 40px !important;
  overflow: hidden; white-space: nowrap !important
}
.heat caption { display: none }
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium with a new, empty user-data-dir."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def wait_for_count(shown: Any, count: int) -> None:
    """An image is visible only once it is decoded."""
    from playwright.sync_api import expect

    expect(shown).to_have_count(count)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page as a file, without a name that is friendly to addresses."""
    file = tmp_path_factory.mktemp("page") / "a b#c.html"
    file.write_text(render(check(results(), "here")), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end no page may have said, asked or thrown anything."""
    said: list[str] = []
    contexts = []

    def open_page(width: int = 1000, at: str = address, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: (
            None if request.url.startswith(("file:", "data:")) else said.append(request.url)
        ))  # fmt: skip
        tab.goto(at)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def shot(locator: Any) -> np.ndarray:
    """[H, W, 3] of what an element shows, 96 × 64."""
    image = Image.open(io.BytesIO(locator.screenshot())).convert("RGB")
    return np.asarray(image.resize((96, 64), Image.Resampling.BOX), dtype=np.float32)


def split_of(sample: Any) -> float:
    """Where the dense image ends, as a share of the width, measured in pixels."""
    pixels = shot(sample.locator(".compare"))[4:20].mean(axis=(0, 2))  # above the handle's arrow
    return float((pixels > 128).mean())


def test_the_slider_follows_the_mouse(opened: Any) -> None:
    sample = opened().locator(".samples > li").first
    assert split_of(sample) == pytest.approx(0.5, abs=0.05)
    box = sample.locator("img").first.bounding_box()
    sample.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    sample.page.mouse.down()
    sample.page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=5)
    sample.page.mouse.up()
    assert split_of(sample) == pytest.approx(0.8, abs=0.06)


def test_the_slider_follows_a_finger(opened: Any) -> None:
    sample = opened(360, has_touch=True).locator(".samples > li").first
    sample.locator("input").tap(position={"x": 30, "y": 50})
    assert split_of(sample) == pytest.approx(0.2, abs=0.1)


def test_the_slider_follows_the_keyboard_and_says_where_it_is(opened: Any) -> None:
    sample = opened().locator(".samples > li").first
    slider = sample.get_by_role("slider")
    slider.focus()
    assert sample.locator(".compare").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    for key, value in (("ArrowRight", "51"), ("ArrowLeft", "50"), ("Home", "0"), ("End", "100")):
        slider.press(key)
        assert slider.input_value() == value
    assert split_of(sample) > 0.95
    assert slider.get_attribute("aria-valuetext").startswith("dense up to 100 %")
    assert slider.get_attribute("aria-label") == "Compare dense with pruned, sample 10: 0"


def test_everything_is_reached_by_tab(opened: Any) -> None:
    page = opened()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.matches('input') ? "
                "document.activeElement.type : document.activeElement.tagName"
            )
        )
    assert {"A", "radio", "range", "SUMMARY", "DIV", "PRE"} <= reached


def test_the_worst_come_first_for_the_model_that_is_chosen(opened: Any) -> None:
    page = opened()

    def shown() -> list[str]:
        return page.locator(".samples > li figcaption:visible").all_inner_texts()[1::2]

    assert [text[-5:] for text in shown()] == ["0.900", "0.910", "0.920", "0.930", "0.940"]
    page.get_by_role("radio", name="magnitude 50").check()
    assert [text[-5:] for text in shown()] == ["0.760", "0.770", "0.780", "0.790", "0.800"]
    assert all(text.startswith("magnitude 50") for text in shown())
    page.keyboard.press("ArrowLeft")
    assert shown()[0].startswith("stw 50")


def test_all_models_stand_in_one_row_or_as_a_difference(opened: Any) -> None:
    page = opened()
    shown = page.locator(".samples > li").first.locator("img:visible")
    wait_for_count(shown, 2)
    page.get_by_label("all models in one row").check()
    wait_for_count(shown, 3)
    assert len({round(shown.nth(n).bounding_box()["y"]) for n in range(3)}) == 1
    page.get_by_label("difference", exact=True).check()
    wait_for_count(shown, 2)
    assert shot(shown.last).mean() > 200  # white against nearly black
    width = shown.first.bounding_box()["width"]
    page.get_by_label("large").check()
    assert shown.first.bounding_box()["width"] > 1.5 * width


def test_a_table_says_where_it_is_cut(opened: Any) -> None:
    page = opened(360)
    cut = page.locator("#quality .scroll.cut")
    cut.wait_for()
    cut.evaluate("table => table.scrollLeft = table.scrollWidth")
    page.locator("#quality .scroll.wide:not(.cut)").wait_for()
    assert opened(1600).locator("#quality .scroll.wide").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_up_and_down_only(scheme: str, opened: Any) -> None:
    page = opened(360, color_scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_long_words_do_not_widen_a_phone(opened: Any, tmp_path: Path) -> None:
    content = results()
    content["models"][1]["name"] = "word" * 50
    content["gallery"][0]["condition"] = content["command"] = "prompt" * 50
    content["protocol"]["reference"] = "reference" * 50
    for sample in content["gallery"]:
        sample["images"]["word" * 50] = picture(9)
    file = tmp_path / "long.html"
    file.write_text(render(check(content, "here")), encoding="utf-8")
    page = opened(360, file.as_uri())
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_without_scripts_the_images_stand_side_by_side(opened: Any) -> None:
    page = opened(java_script_enabled=False)
    wait_for_count(page.locator(".samples img:visible"), 15)
    assert page.locator("input:visible").count() == 0


def test_words_that_look_like_scripts_do_not_run(opened: Any, tmp_path: Path) -> None:
    content = results()
    content["gallery"][0]["condition"] = content["models"][1]["name"] = (
        "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
    )
    for sample in content["gallery"]:
        sample["images"][content["models"][1]["name"]] = picture(9)
    file = tmp_path / "hostile.html"
    file.write_text(render(check(content, "here")), encoding="utf-8")
    assert opened(at=file.as_uri()).title().startswith("Pruned against dense: <script>")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("part", "selector"),
    [("sample", ".samples > li:first-child .compare"), ("plot", "figure.plot >> nth=3 >> svg"),
     ("heat", "table.heat >> nth=1")],
    ids=["sample", "plot", "heat"],
)  # fmt: skip
def test_it_looks_as_it_did(scheme: str, part: str, selector: str, opened: Any) -> None:
    page = opened(color_scheme=scheme)
    page.add_style_tag(content=WITHOUT_WORDS)
    seen, file = shot(page.locator(selector).first), SHOTS / f"{part}-{scheme}.png"
    if not file.is_file():
        SHOTS.mkdir(exist_ok=True)
        Image.fromarray(seen.astype(np.uint8)).save(file)
        pytest.fail(f"stored {file}; look at it")
    expected = np.asarray(Image.open(file).convert("RGB"), dtype=np.float32)
    difference = np.abs(seen - expected).max(axis=2)
    assert difference.mean() < TOLERANCE
    assert (difference > MOST_AT_EDGES).mean() < FEWEST
