"""Everybody can use the page: axe-core finds nothing serious, in light and dark, on a desktop and a phone."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.serve.browser.conftest import DESKTOP, PHONE
from tests.serve.browser.page_creating import finished, make

SERIOUS = ("serious", "critical")


def check(page: Page, state: str) -> None:
    """Fails with what axe-core finds."""
    found = Axe().run(page).response["violations"]
    bad = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in SERIOUS]
    assert bad == [], state
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"{state}: {wide} pixels stick out"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(visit, scheme, size):
    page = visit(viewport=size, color_scheme=scheme)
    page.click("#unfold")
    check(page, "options")
    page.locator(".tip").first.focus()
    check(page, "a tip")
    page.fill("#seed", "x")
    page.fill("#prompt", "owl")
    page.click("#go")
    check(page, "an error")
    name = make(page, "owl", count=4, quality="best")
    page.locator(f"#job-{name} .tile.making img[src*=preview]").first.wait_for()
    check(page, "running")
    card = finished(page, name)
    check(page, "finished")
    card.locator(".tile.finished .frame").first.click()
    for summary in page.locator("#viewer summary").all():
        summary.click()
    page.locator(".heat").wait_for()
    page.locator(".ribbon").wait_for()
    check(page, "the viewer")
    page.get_by_role("button", name="Delete this picture").click()
    check(page, "a question")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="paint what changes").click()
    page.locator(".easel").wait_for()
    check(page, "painting")
    for room in ("compare", "training"):
        page.locator("nav a", has_text=room.capitalize()).click()
        expect(page.locator(f"#{room}")).to_be_visible()
        page.locator("#compare-prompts, .run-detail").locator("visible=true").first.wait_for()
        check(page, room)


def test_the_page_says_what_happens_to_those_who_listen(visit):
    page = visit()
    finished(page, make(page, "owl", count=2))
    expect(page.locator("#live")).to_have_text("2 pictures finished.")
    bar = page.get_by_role("progressbar", include_hidden=True)
    assert bar.first.get_attribute("aria-valuenow") == "100"
