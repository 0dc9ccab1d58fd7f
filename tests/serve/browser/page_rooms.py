"""The other rooms: the look inside, blind comparisons, trainings; and what stays after a restart."""

import json
import re

from playwright.sync_api import expect

from tests.serve.browser.page_creating import finished, make


def test_the_look_inside_shows_steps_words_and_neighbours(visit):
    page = visit()
    card = finished(page, make(page, "red apple", quality="balanced"))
    card.locator(".tile.finished .frame").click()
    for title in ("Nearest training pictures", "Which word moved which part", "How it came about"):
        page.locator("summary", has_text=title).click()
    page.locator(".heat").wait_for()
    expect(page.get_by_role("group", name="Words").get_by_role("button")).to_have_text(["red", "apple"])
    page.get_by_role("button", name="apple", exact=True).click()
    expect(page.locator(".heat")).to_have_attribute("aria-label", re.compile('read "apple": '))
    expect(page.locator(".ribbon li")).to_have_count(12)
    expect(page.locator(".panel").first).to_contain_text(re.compile("training pictures|not on this machine"))


def test_an_address_of_no_room_shows_the_first_one(visit):
    for name in ("constructor", "__proto__", "<img>"):
        expect(visit(name).locator("#create")).to_be_visible()


def test_a_comparison_is_blind_until_its_last_vote(visit, server):
    page = visit("compare")
    page.fill("#compare-prompts", "owl\nfox")
    page.get_by_role("button", name="Start comparing").click()
    for pair in range(2):
        page.locator(".pair").wait_for()
        expect(page.locator(".pair h2")).to_have_text(("owl", "fox")[pair])
        room = page.locator("#compare-room").inner_html()
        assert "shipped" not in room
        assert "unguided" not in room
        page.click("#words-left")
        page.click("#picture-tie")
    expect(page.locator("#compare-room")).to_contain_text("Now the names")
    expect(page.locator("#compare-room table").first).to_contain_text("unguided")
    lines = page.request.get(f"{server.address}/v1/votes.jsonl").text().splitlines()
    votes = [json.loads(line) for line in lines][-4:]
    assert [vote["question"] for vote in votes] == ["words", "picture"] * 2
    assert {vote["preferred"] for vote in votes if vote["question"] == "picture"} == {"tie"}
    expect(page.locator(".strengths")).to_contain_text("4 votes" if len(lines) > 4 else "2 votes")
    shown = server.get("/v1/history")
    assert not any(picture["prompt"] == "owl" and picture["model"] == "unguided" for picture in shown)


def test_trainings_are_shown_in_their_states(visit):
    page = visit("training")
    expect(page.locator(".runs .state")).to_have_count(4)
    states = {run.get_attribute("data-state") for run in page.locator(".runs .state").all()}
    assert states == {"running", "stopped", "died", "finished"}
    page.locator(".run", has_text="died").first.click()
    expect(page.locator(".run-detail")).to_contain_text("without saving its last 20 steps")
    expect(page.locator(".run-detail .chart")).to_have_count(1)
    expect(page.locator(".run-detail .sheet")).to_have_attribute("alt", "Samples at step 60")


def test_a_restart_keeps_history_and_says_what_was_not_finished(visit, server):
    page = visit()
    finished(page, make(page, "snowman"))
    name = make(page, "owl", count=16, quality="best")
    page.locator(f"#job-{name} .tile.making img[src*=preview]").first.wait_for()
    server.stop()
    expect(page.locator("#banner")).to_contain_text("does not answer")
    server.start()
    page.goto(f"{server.address}/")
    expect(page.locator(".job-state")).to_contain_text("closed before these pictures were finished")
    expect(page.locator(".thumb img").first).to_have_attribute("alt", re.compile("snowman"))
    page.get_by_role("button", name="Again").click()
    page.locator(".tile.making img[src*=preview]").first.wait_for()
    page.get_by_role("button", name="Stop").click()
