"""The page of a sweep in a headless Chromium: nothing is logged, and what can be clicked works."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from podrt.bench.sweep.page.code import KernelCode, packed
from podrt.bench.sweep.page.contents import contents_of
from podrt.bench.sweep.page.page import page_of
from podrt.bench.sweep.page.trace import read_trace
from podrt.bench.sweep.records import load
from podrt.explore.timeline import Span, Timeline

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "sweep.jsonl"
#: Names of the browser where playwright has none of its own; a path in PODRT_CHROMIUM goes first.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = (shutil.which(name) for name in _BROWSERS)
        own = driver.chromium.executable_path
        paths = [os.environ.get("PODRT_CHROMIUM"), own if Path(own).exists() else None, *found]
        path = next(filter(None, paths), None)
        if path is None:
            pytest.skip("needs Chromium: playwright install chromium, or PODRT_CHROMIUM=path")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    spans = [
        Span(sm, role, begin, begin + 9.0)
        for sm in range(132)
        for role, begin in (("prefill", 0.0), ("decode", 5.0), ("prefill", 10.0))
    ]
    trace = folder / "trace.json"
    trace.write_text(json.dumps(Timeline("NVIDIA H100", 132, tuple(spans)).chrome_trace()))
    sweep = load(EXAMPLE)
    name = next(result.kernels[0] for result in sweep.results if result.variant == "auto")
    code = KernelCode(name, packed("first line\n// <b>second</b>"), packed("HGMMA\nEXIT"))
    path = folder / "report.html"
    page = page_of(contents_of(sweep), [code], read_trace(trace), title="<i>sweep</i>")
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(params=["light", "dark"])
def page(browser, file, request):
    """Open the page on a laptop's screen; afterwards nothing was logged or asked for."""
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=request.param)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda each: asked.append(each.url))
    page.goto(file.as_uri())
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


def _column(page, index):
    return page.locator(f"#results tbody tr td:nth-child({index})").all_inner_texts()


def test_it_fits_a_laptop_and_heeds_the_colour_scheme(page):
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 1280
    back, front = (
        page.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("backgroundColor", "color")
    )
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(map(int, back[4:-1].split(","))) < 3 * 64) == is_dark
    assert (sum(map(int, front[4:-1].split(","))) > 3 * 128) == is_dark
    assert page.inner_text("h1") == "<i>sweep</i>"


def test_a_click_on_a_heading_sorts_and_another_one_turns_it_round(page):
    heading = page.locator("#results").get_by_role("button", name="us", exact=True)
    heading.click()
    up = [float(text) for text in _column(page, 4) if text != "-"]
    assert len(up) > 40
    assert up == sorted(up)
    assert set(_column(page, 4)[len(up) :]) == {"-"}  # what has no time comes last
    heading.click()
    down = [float(text) for text in _column(page, 4) if text != "-"]
    assert down == up[::-1]
    assert page.locator("#results [aria-sort=descending]").count() == 1


def test_words_and_choices_filter(page):
    whole = len(_column(page, 1))
    page.fill("#filter", "hopper decode_only_sms=8")
    names = _column(page, 1)
    assert 0 < len(names) < whole
    assert all("decode_only_sms=8" in name for name in names)
    assert page.inner_text("#count") == f"{len(names)} of {whole} records"
    page.locator("#summary tbody tr", has_text=names[0]).first.click()
    assert set(_column(page, 1)) == {page.input_value("#filter").strip('"')} == {names[0]}
    page.fill("#filter", "")
    page.select_option("#status", "wrong")
    assert set(_column(page, 3)) == {"wrong"}
    page.select_option("#status", "")
    name = page.locator("#case option").nth(1).inner_text()
    page.select_option("#case", name)
    assert set(_column(page, 2)) == {name}


def test_a_cell_leads_to_its_variant_and_plan(page):
    cell = page.locator(".map button.best").first
    variant, _, case = cell.get_attribute("title").partition(", ")
    cell.click()
    assert page.inner_text("#detail h2") == variant
    assert case in page.inner_text("#detail-body dl")
    assert page.locator("#plan tbody tr").count() > 3
    assert page.locator("#plan tbody tr.chosen").count() == 1
    assert page.locator("#results tr.chosen").count() == 1
    page.keyboard.press("Escape")
    assert page.is_hidden("#detail")
    assert page.locator("#results tr.chosen").count() == 0


def test_a_point_of_the_roofline_leads_to_its_variant(page):
    page.locator("#roofline-plot circle.auto").first.click()
    assert page.inner_text("#detail h2") == "auto"


def _range(page):
    begin, end = page.inner_text("#zoom-range").removesuffix(" us").split(" to ")
    return float(begin), float(end)


def test_the_timeline_zooms(page):
    canvas = page.locator("#timeline-canvas")
    canvas.scroll_into_view_if_needed()
    assert _range(page) == (0.0, 19.0)
    page.click("#zoom-in")
    assert _range(page) == (4.75, 14.25)
    page.click("#zoom-out")
    assert _range(page) == (0.0, 19.0)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 100)
    page.mouse.up()
    begin, end = _range(page)
    assert 2.0 < end - begin < 5.0
    page.click("#zoom-all")
    page.mouse.move(box["x"] + 300, box["y"] + 20)
    assert page.inner_text("#span").startswith("SM 0, prefill: 0.00 to 9.00 us")
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("document.getElementById('zoom-range').textContent.includes('15.')")
    page.click("#zoom-all")
    canvas.focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    begin, end = _range(page)
    assert (round(begin, 1), round(end, 1)) == (7.1, 16.6)
    assert page.inner_text("#timeline-note").startswith("simulated, NVIDIA H100: 396 spans on 132")


def test_code_is_unpacked_and_searched(page):
    text = page.locator("#code-text")
    playwright.expect(text).to_have_text("1  first line\n2  // <b>second</b>")
    page.select_option("#text", "sass")
    playwright.expect(text).to_have_text("1  HGMMA\n2  EXIT")
    page.fill("#find", "exit")
    playwright.expect(text).to_have_text("2  EXIT")
