"""Pages as a browser shows them: light, dark, on a phone, on paper, by hand and by keyboard."""

import re
from dataclasses import replace

import pytest
import torch

from browser import chromium
from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.objectives import CapacityVAE
from pyvae.report import report
from pyvae.report.beside import write_beside
from pyvae.report.glossary import TERMS
from test_report import RECIPE
from tiny import TinyData

DATA = TinyData()


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory):
    """A report of a trace with all panels, and a comparison; first the browser, without which there is no need."""
    at = tmp_path_factory.mktemp("pages")
    recipes = {
        "a": replace(RECIPE, steps=3),
        "b-with-a-rather-long-name-" + "x" * 40: replace(
            RECIPE, objective=CapacityVAE(capacity_steps=40), steps=62, batch_size=2
        ),
    }
    runs = []
    for name, recipe in recipes.items():
        run = RunDirectory.create_or_resume(at / name, recipe)
        train(run, DATA, torch.device("cpu"), log_every=1)
        runs.append((run, DATA))
    return {"report": report(*runs[1]), "comparison": write_beside(runs)}


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone_and_asks_for_nothing(browser, pages, kind, scheme):
    with browser.open(pages[kind], width=390, height=800, color_scheme=scheme) as visit:
        page = visit.page
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        ink, paper = page.evaluate(
            "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
        )
        assert ink != paper
        light = sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) > 384
        assert light == (scheme == "light")
        for link in page.query_selector_all("nav a"):
            assert page.query_selector(f"main {link.get_attribute('href')}") is not None
        visit.assert_quiet()


def test_a_slider_that_has_the_focus_is_in_sight(browser, pages):
    for width, height in ((390, 700), (600, 450), (320, 256)):  # a phone, and screens enlarged
        with browser.open(pages["report"], width=width, height=height) as visit:
            visit.page.locator(".explorer-sweep").nth(2).scroll_into_view_if_needed()
            for k in (1, 0):
                slider = visit.page.locator(f"#explorer-{k}")
                slider.focus()
                above = visit.page.evaluate(
                    "[...document.querySelectorAll('.explorer-stage, nav')].map("
                    "(each) => each.getBoundingClientRect().bottom)"
                )
                box = slider.bounding_box()
                assert max(above) <= box["y"]
                assert box["y"] + box["height"] <= height


def test_numbers_explain_themselves_to_a_mouse_a_keyboard_and_a_finger(browser, pages):
    for how in ("mouse", "keyboard", "finger", "no script"):
        options = {"has_touch": True} if how == "finger" else {}
        with browser.open(pages["report"], java_script_enabled=how != "no script", **options) as visit:
            page = visit.page
            term = page.locator(".tiles button").nth(1)
            about = page.locator(".tiles .about").nth(1)
            assert not about.is_visible()
            if how == "mouse":
                term.hover()
            elif how == "finger":
                term.tap()
            else:
                term.focus()
            assert about.inner_text() == TERMS["kl"].meaning
            assert about.is_visible()
            box = about.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 1200
            if how != "no script":
                beside = term.bounding_box()
                gaps = beside["y"] - box["y"] - box["height"], box["y"] - beside["y"] - beside["height"]
                assert 0 < max(gaps) < 10
                page.keyboard.press("Escape")
                assert not about.is_visible()
            visit.assert_quiet()


def values(page, panel):
    return page.locator(".chart").nth(panel).locator(".legend b").all_inner_texts()


def test_curves_are_read_off_together(browser, pages):
    with browser.open(pages["report"]) as visit:
        page = visit.page
        plots = page.locator(".plot")
        assert plots.count() == 6
        last = [values(page, i) for i in range(6)]
        plots.nth(0).scroll_into_view_if_needed()
        box = plots.nth(0).bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
        at = page.locator(".chart .at").all_inner_texts()
        assert at[0] in [f"step {step}" for step in range(24, 33)]
        assert at[:5] == [at[0]] * 5
        assert at[5] == ""  # of another abscissa
        moved = [values(page, i) for i in range(6)]
        assert all(one != other for one, other in zip(moved[:3], last[:3], strict=True))
        assert moved[5] == last[5]
        page.mouse.move(5, 5)
        assert [values(page, i) for i in range(6)] == last
        visit.assert_quiet()


def test_curves_are_read_off_by_keyboard_and_lines_are_hidden(browser, pages):
    with browser.open(pages["report"]) as visit:
        page = visit.page
        plot = page.locator(".plot").nth(1)
        label = plot.get_attribute("aria-label")
        assert (plot.get_attribute("role"), label) == ("slider", "KL, nats per image")
        plot.focus()
        page.keyboard.press("Home")
        assert plot.get_attribute("aria-valuetext").startswith("step 0: KL, minibatch ")
        page.keyboard.press("ArrowRight")
        assert plot.get_attribute("aria-valuenow") == "1"
        assert page.locator(".chart .at").nth(4).inner_text() == "step 1"
        # the values are those of the trace
        assert values(page, 4) == [f"{1 * 25 / 40:.4g}"]
        button = page.locator(".chart").nth(1).locator(".legend button").nth(1)
        line = page.locator(".chart").nth(1).locator("svg .line").nth(1)
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert not line.is_visible()
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert line.is_visible()
        visit.assert_quiet()
    with browser.open(pages["comparison"]) as visit:
        # of three rows are points
        chart = visit.page.locator(".chart").first
        assert chart.locator(".dot:visible").count() == 3
        chart.get_by_role("button", name=re.compile(r"^a [0-9]")).click()
        assert chart.locator(".dot:visible").count() == 0
        assert chart.locator(".line:visible").count() == 1
        visit.assert_quiet()


def test_without_a_script_all_is_seen_but_what_needs_one(browser, pages):
    with browser.open(pages["report"], java_script_enabled=False) as visit:
        page = visit.page
        assert page.locator(".chart svg .line").first.is_visible()
        assert page.locator(".legend button:enabled").count() == 0
        assert not page.get_by_text("use the arrow keys").is_visible()
        visit.assert_quiet()


def test_paper_shows_what_is_folded_and_nothing_that_moves(browser, pages):
    with browser.open(pages["report"], color_scheme="dark") as visit:
        page = visit.page
        listed = page.locator("dl.glossary dd").first
        assert not listed.is_visible()
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert listed.is_visible()
        assert not page.locator("nav").is_visible()
        assert not page.locator("img[src^='data:image/gif']").first.is_visible()
        # paper is white, however dark the screen was
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert ink == "rgb(27, 30, 35)"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0
        visit.assert_quiet()
