"""The viewer in a real browser: Chromium, by Playwright."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from axpo.record.run import RunDirectory
from tests.axpo.helpers import decode
from tests.axpo.viewer.browser import Watcher, launched, served, violations, wait_for
from tests.axpo.viewer.made_runs import ADDRESSES, answered, numbers, write_run

PATHS = (*ADDRESSES, "/r/7")
NOT_FOUND = "error: Failed to load resource: the server responded with a status of 404 (Not Found)"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with launched() as made:
        yield made


@pytest.fixture(scope="module")
def viewer(made_runs, tmp_path_factory, browser):
    with served(made_runs / "a", made_runs / "hostile", cache=tmp_path_factory.mktemp("c")) as url:
        yield SimpleNamespace(url=url, origin=url.split("/?")[0])


def opened(browser, viewer, **options):
    """Return a page of a new browser that has the token, and what it did wrong."""
    page = browser.new_context(**{"viewport": WIDE} | options).new_page()
    watcher = Watcher(page, viewer.origin)
    page.goto(viewer.url)
    wait_for(page, "!document.querySelector('#state .note')")
    return page, watcher


@pytest.fixture
def page(browser, viewer):
    made, _ = opened(browser, viewer)
    yield made
    made.context.close()


def test_hostile_texts_do_not_run_and_nothing_is_loaded_from_elsewhere(browser, viewer):
    page, watcher = opened(browser, viewer)
    for path in PATHS:
        page.goto(viewer.origin + path)
        page.evaluate(
            "document.querySelectorAll('main details').forEach((one) => { one.open = true; })"
        )
        for token in page.query_selector_all(".u[title]")[:3]:
            token.click()
        assert page.evaluate("window.hacked") is None, path
    watcher.faults.remove(NOT_FOUND)  # /r/7
    assert watcher.faults == []
    page.context.close()


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", WIDE), ("dark", PHONE)], ids=["light", "dark phone"]
)
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(
    browser, viewer, scheme, viewport
):
    page, _ = opened(browser, viewer, viewport=viewport, color_scheme=scheme)
    found = {}
    for path in PATHS:
        page.goto(viewer.origin + path)
        found[path] = violations(page)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > viewport["width"]:
            found[path].append(f"{width} pixels wide")
    assert {path: faults for path, faults in found.items() if faults} == {}
    page.context.close()


def test_the_list_follows_what_is_typed(page, viewer):
    page.goto(f"{viewer.origin}/r/0/groups")
    assert page.locator(".row").count() == 30
    page.fill("#search", "seven is:mixed step:2..4")
    wait_for(page, "document.querySelectorAll('.row').length === 3")
    assert "step" in page.url
    page.select_option("[name=order]", "oldest")
    wait_for(page, "document.querySelector('.row .dim').textContent.startsWith('Step 2')")
    page.fill("#search", "is:")
    page.wait_for_selector(".fault")
    page.reload()
    assert page.input_value("#search") == "is:"


def test_a_reader_needs_no_mouse(page, viewer):
    page.goto(f"{viewer.origin}/r/0/groups")
    page.keyboard.press("/")
    page.keyboard.type("is:forked")
    wait_for(page, "document.querySelectorAll('.row').length === 12")
    page.keyboard.press("Escape")
    for key in ("j", "j", "j", "k"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/groups/training/11/0?q=is%3Aforked")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/groups/training/10/0?*")
    page.keyboard.press("k")
    page.wait_for_url("**/groups/training/11/0?*")
    page.keyboard.press("u")
    page.wait_for_url("**/r/0/groups?q=is%3Aforked")
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    page.goto(f"{viewer.origin}/r/0/timeline")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/timeline?step=11")


def test_boxes_light_up_with_their_rollout_and_tokens_tell_their_probability(page, viewer):
    page.goto(f"{viewer.origin}/r/0/groups/training/3/0")
    page.hover(".prefix")
    assert page.locator(".look .picture.pick rect.on").count() == 1
    page.click(".u[title] >> nth=0")
    assert page.text_content("#tip") == "probability 0.50"


@pytest.mark.slow
def test_a_run_that_trains_is_followed(browser, tmp_path):
    path = write_run(tmp_path, "live", steps=3, ended=False)
    with served(path, cache=tmp_path / "cache") as url:
        page = browser.new_page()
        page.goto(url)
        wait_for(page, "document.querySelector('#head').textContent.includes('12 groups')")
        run = RunDirectory.open(path)
        run.log_metrics(4, numbers(4))
        run.save_groups(4, [answered("new", "eight", (1.0,))], decode)
        wait_for(page, "document.querySelector('#head').textContent.includes('step 4 of')")
        wait_for(page, "document.querySelector('#head').textContent.includes('13 groups')")
        assert page.locator(".charts .chart").count() > 4
        page.close()


def test_the_viewer_is_there_at_once_and_ends_at_once(made_runs, tmp_path, browser):
    begun = time.monotonic()
    with served(made_runs / "a", cache=tmp_path) as url:
        page = browser.new_page()
        page.goto(url)
        assert page.text_content("h1") == "a"
        page.close()
    assert time.monotonic() - begun < 20
