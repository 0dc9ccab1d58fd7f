"""Pictures of the page in its states, to be looked at: they are written to `runs/page/`.

Two of them are in `docs/`; `docs/serve.md` says which command made them.
"""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.serve.browser.conftest import PHONE
from tests.serve.browser.page_creating import finished, make

OUT = Path("runs/page")
SIZE = {"width": 1180, "height": 860}


def shoot(page: Page, name: str, *, whole: bool = False) -> None:
    """Writes a picture of the window, or of the whole page."""
    OUT.mkdir(parents=True, exist_ok=True)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)  # pictures below the window are loaded as they come near
    page.screenshot(path=OUT / f"{name}.png", full_page=whole, animations="disabled")


def test_creating(visit):
    page = visit(viewport=SIZE)
    shoot(page, "empty")
    for words in ("sailboat", "owl", "birthday cake"):
        finished(page, make(page, words, count=4, quality="best"))
    name = make(page, "penguin", count=4, quality="best")
    page.locator(f"#job-{name} .tile.making img[src*=preview]").nth(3).wait_for()
    shoot(page, "running")
    finished(page, name)
    finished(page, make(page, "fox", count=4, quality="best"))
    shoot(page, "finished", whole=True)


def test_the_look_inside(visit):
    page = visit(viewport=SIZE)
    card = finished(page, make(page, "red apple", quality="best"))
    card.locator(".tile.finished .frame").click()
    shoot(page, "viewer")
    for title in ("Nearest training pictures", "Which word moved which part"):
        page.locator("summary", has_text=title).click()
    page.locator(".heat").wait_for()
    page.get_by_role("button", name="apple", exact=True).click()
    page.locator("#viewer").evaluate("dialog => { dialog.scrollTop = 190; }")
    shoot(page, "inside")


def test_the_other_rooms_and_a_phone_in_the_dark(visit):
    page = visit("compare", viewport=SIZE)
    page.fill("#compare-prompts", "owl")
    page.get_by_role("button", name="Start comparing").click()
    page.locator(".pair").wait_for()
    shoot(page, "compare")
    page.click("#words-left")
    page.click("#picture-left")
    page.locator(".strengths").wait_for()
    shoot(page, "strengths", whole=True)
    page.locator("nav a", has_text="Training").click()
    expect(page.locator(".chart").first).to_be_visible()
    shoot(page, "training")
    phone = visit(viewport=PHONE, color_scheme="dark", device_scale_factor=2)
    finished(phone, make(phone, "butterfly", count=4, quality="best"))
    shoot(phone, "phone", whole=True)
