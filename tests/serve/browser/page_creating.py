"""Making pictures on the page, as a person does: clicks, keys, files."""

import base64
import io
import re
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

SEED = 1234


def make(page: Page, words: str, *, count: int = 1, quality: str = "fast", seed: str = "") -> str:
    """Fills the form and presses the button; returns the id of the job, which is on the page."""
    page.fill("#prompt", words)
    page.check(f"[name=quality][value={quality}]")
    page.select_option("#count", str(count))
    page.fill("#seed", seed)
    return started(page, lambda: page.click("#go"))


def started(page: Page, act: Callable[[], None]) -> str:
    """The id of the job that an act has started, which is on the page."""
    with page.expect_response("**/v1/generate") as answer:
        act()
    name = answer.value.json()["id"]
    page.locator(f"#job-{name}").wait_for()
    return name


def finished(page: Page, name: str) -> Locator:
    """The card of a job, once it has finished."""
    card = page.locator(f"#job-{name}[data-state=finished]")
    card.wait_for()
    return card


def pixels(page: Page, address: str) -> np.ndarray:
    """A picture of the server, h w 3."""
    with Image.open(io.BytesIO(page.request.get(address).body())) as picture:
        return np.array(picture.convert("RGB"))


def plain(colour: str) -> bytes:
    """A PNG that was not made here."""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def drop(page: Page, data: bytes, name: str) -> None:
    """Drops a file on the page."""
    transfer = page.evaluate_handle(
        """([text, name]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": transfer})


def test_the_first_picture_takes_two_clicks(visit, log):
    page = visit()
    for state in ("of a server that has just started", "after another one"):
        page.locator("#example-list button").first.click()
        began = time.monotonic()
        card = finished(page, started(page, lambda: page.click("#go")))
        log(f"four pictures, balanced, {state}: {time.monotonic() - began:.1f} s after the click")
    image = card.locator(".tile.finished img").first
    assert image.evaluate("image => image.naturalWidth") == 64
    assert re.fullmatch(r"red apple, seed \d+", image.get_attribute("alt"))


def test_a_preview_is_there_before_the_picture_and_changes(visit):
    page = visit()
    card = page.locator(f"#job-{make(page, 'owl', quality='best')}")
    preview = card.locator(".tile.making img")
    expect(preview).to_have_attribute("src", re.compile("preview"))
    first = preview.get_attribute("src")
    expect(preview).not_to_have_attribute("src", first)
    expect(card.locator(".job-state")).to_contain_text(re.compile(r"\d+ %.*left"))
    expect(card).to_have_attribute("data-state", "finished")


def test_stop_takes_effect_within_a_step(visit, server):
    page = visit()
    name = make(page, "fox", count=16, quality="best")
    card = page.locator(f"#job-{name}")
    card.locator(".tile.making img[src*=preview]").first.wait_for()
    card.get_by_role("button", name="Stop").click()
    expect(card.locator(".job-state")).to_contain_text("Stopped")
    at_stop = server.get(f"/v1/jobs/{name}")
    next_one = make(page, "fox")
    page.locator(f"#job-{next_one} .tile.making img[src*=preview]").first.wait_for()
    # the networks are free for others while most of its steps are not made, and it makes no more of them
    after = server.get(f"/v1/jobs/{name}")
    assert (after["state"], after["step"]) == ("stopped", at_stop["step"])
    assert not any(after["pictures"])
    finished(page, next_one)


def test_skip_leaves_pictures_out_and_goes_on(visit, server):
    page = visit()
    name = make(page, "owl", count=8, quality="best")
    page.locator(f"#job-{name} .tile.making img[src*=preview]").first.wait_for()
    page.get_by_role("button", name="Skip").click()
    finished(page, name)
    made = server.get(f"/v1/jobs/{name}")["pictures"]
    assert 0 < sum(picture is not None for picture in made) < 8


def test_a_reload_midway_keeps_the_progress(visit, server):
    page = visit()
    name = make(page, "penguin", count=8, quality="best")
    page.locator(f"#job-{name} .tile.making img[src*=preview]").first.wait_for()
    step = server.get(f"/v1/jobs/{name}")["step"]
    page.reload()
    page.locator(f"#job-{name}").wait_for()
    assert server.get(f"/v1/jobs/{name}")["step"] >= step > 0
    expect(page.locator("#prompt")).to_have_value("penguin")
    expect(finished(page, name).locator(".tile.finished")).to_have_count(8)


def test_a_dropped_picture_brings_its_settings_back(visit):
    page = visit()
    page.click("#unfold")
    page.fill("#option-negative", "a hat")
    page.fill("#option-steps", "5")
    page.select_option("#option-sampler", "euler")
    card = finished(page, make(page, "sailboat", seed=str(SEED)))
    address = card.locator(".tile.finished img").get_attribute("src")
    other = visit()  # a new window, with an empty form
    drop(other, page.request.get(address).body(), "picture.png")
    expect(other.locator("#note")).to_contain_text("settings of that picture are back")
    for field, value in {"prompt": "sailboat", "seed": str(SEED), "option-negative": "a hat"}.items():
        expect(other.locator(f"#{field}")).to_have_value(value)
    expect(other.locator("#option-steps")).to_have_value("5")
    expect(other.locator("#option-sampler")).to_have_value("euler")
    card = finished(other, started(other, lambda: other.click("#go")))
    again = card.locator(".tile.finished img").get_attribute("src")
    assert again != address
    assert np.array_equal(pixels(other, again), pixels(page, address))


def test_another_dropped_picture_is_started_from(visit):
    page = visit()
    drop(page, plain("orange"), "mine.png")
    expect(page.locator("#note")).to_contain_text("You can start from it")
    expect(page.locator(".easel")).to_be_visible()
    finished(page, make(page, "owl"))


def test_what_is_not_painted_stays_to_the_last_pixel(visit):
    page = visit()
    card = finished(page, make(page, "red apple", seed=str(SEED)))
    before = pixels(page, card.locator(".tile.finished img").get_attribute("src"))
    card.locator(".tile.finished .frame").click()
    page.get_by_role("button", name="paint what changes").click()
    box = page.locator(".mask").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 20, steps=5)
    page.mouse.up()
    card = finished(page, make(page, "blue heart", seed=str(SEED)))
    address = card.locator(".tile.finished img").get_attribute("src")
    after = pixels(page, address)
    changed = (before != after).any(axis=(1, 2))
    assert changed[:8].any()
    assert not changed[16:].any()
    # dropped, it brings back the picture that it started from, and the paint
    other = visit()
    drop(other, page.request.get(address).body(), "painted.png")
    expect(other.locator("#note")).to_contain_text("settings of that picture are back")
    card = finished(other, started(other, lambda: other.click("#go")))
    again = pixels(other, card.locator(".tile.finished img").get_attribute("src"))
    assert np.array_equal(again, after)


def test_a_mask_can_be_painted_with_keys_alone(visit):
    page = visit()
    drop(page, plain("white"), "mine.png")
    page.locator(".mask").focus()
    for key in ("ArrowLeft", "ArrowUp", "Space"):
        page.keyboard.press(key)
    expect(page.locator("#live")).to_have_text("Painted")
    painted = page.locator(".mask").evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    )
    assert painted


def test_more_like_this_starts_from_the_picture(visit, server):
    page = visit()
    name = make(page, "owl")
    more = finished(page, name).get_by_role("button", name="More like this, subtly changed")
    other = started(page, more.click)
    finished(page, other)
    source = server.get(f"/v1/jobs/{other}")["request"]["source"]
    assert source["picture"] == server.get(f"/v1/jobs/{name}")["pictures"][0]
    assert source["strength"] < 0.5


def test_a_kept_seed_makes_the_same_picture(visit):
    page = visit()
    card = finished(page, make(page, "fox"))
    before = pixels(page, card.locator(".tile.finished img").get_attribute("src"))
    card.get_by_role("button", name=re.compile(r"Keep seed \d+")).click()
    card = finished(page, started(page, lambda: page.click("#go")))
    assert np.array_equal(pixels(page, card.locator(".tile.finished img").get_attribute("src")), before)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("#prompt", " ", "Write a few words first"),
        ("#seed", "a lot", "no whole number"),
        ("#option-steps", "100000", "steps"),
    ],
)
def test_an_error_is_said_in_words_at_its_field(visit, field, value, words):
    page = visit()
    page.fill("#prompt", "owl")
    page.click("#unfold")
    page.locator("#composer").evaluate("form => { form.noValidate = true; }")
    page.fill(field, value)
    page.click("#go")
    expect(page.locator("#problem")).to_contain_text(words)
    expect(page.locator(field)).to_be_focused()
    expect(page.locator(field)).to_have_attribute("aria-invalid", "true")


def test_keys_alone_make_open_and_delete_a_picture(visit):
    page = visit()
    page.check("[name=quality][value=fast]")
    page.select_option("#count", "1")
    page.locator("#prompt").focus()
    page.keyboard.type("butterfly")
    card = finished(page, started(page, lambda: page.keyboard.press("Enter")))
    address = card.locator(".tile.finished img").get_attribute("src")
    card.locator(".tile.finished .frame").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.get_by_role("button", name="Delete this picture").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#ask")).to_contain_text("can't be brought back")
    page.keyboard.press("Escape")
    assert page.request.get(address).ok  # it asked, and was told to keep it
    page.get_by_role("button", name="Delete this picture").click()
    page.locator("#ask").get_by_role("button", name="Delete").click()
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.request.get(address).status == 404


def test_the_viewer_steps_through_the_history_and_keeps_the_focus(visit):
    page = visit()
    finished(page, make(page, "owl", count=2))
    card = finished(page, make(page, "fox"))
    card.locator(".tile.finished .frame").click()
    expect(page.locator("#viewer-title")).to_have_text("fox")
    expect(page.get_by_role("button", name="Newer")).to_be_disabled()
    page.get_by_role("button", name="Older").click()
    expect(page.locator("#viewer-title")).to_have_text("owl")
    expect(page.get_by_role("button", name="Older")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-title")).to_have_text("fox")


def test_a_prompt_that_is_cut_is_said_to_be_cut(visit):
    page = visit()
    card = finished(page, make(page, "a red apple beside " * 20))
    expect(card.locator(".job-state")).to_contain_text("the model reads the first 32")


def test_markup_in_words_is_text(visit):
    page = visit()
    words = "<img src=x onerror=document.title='owned'> <b>owl</b>"
    card = finished(page, make(page, words))
    expect(card.locator(".job-title")).to_have_text(words)
    card.locator(".tile.finished .frame").click()
    expect(page.locator("#viewer-title")).to_have_text(words)
    assert "owned" not in page.title()
