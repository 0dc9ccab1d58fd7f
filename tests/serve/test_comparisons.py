"""Blind comparisons over HTTP: what is hidden, what is kept, what is refused."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image

PROMPTS = ["red apple", "green tree", "blue car"]
SEEDS = [7]


@pytest.fixture
def compared(client):
    """`compared(prompts)`: the address of a comparison whose pictures are ready."""

    def until_ready(prompts=PROMPTS) -> str:
        answer = client.post(
            "/v1/comparisons", json={"a": "tiny", "b": "twin", "prompts": prompts, "seeds": SEEDS}
        )
        assert answer.status_code == 201, answer.text
        at = f"/v1/comparisons/{answer.json()['id']}"
        while client.get(at).json()["state"] == "making":
            time.sleep(0.01)
        return at

    return until_ready


def vote(client, at: str, pair: int, words: str, picture: str) -> dict:
    for question, choice in (("words", words), ("picture", picture)):
        answer = client.post(f"{at}/votes", json={"pair": pair, "question": question, "choice": choice})
        assert answer.status_code == 200, answer.text
    return answer.json()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture)


def test_models_are_named_after_the_last_vote_and_not_before(client, compared, make):
    at = compared()
    before = client.get(at)
    assert before.json()["state"] == "voting"
    for pair in range(2):
        after = vote(client, at, pair, "left", "tie")
        text = json.dumps(after)
        assert "tiny" not in text
        assert "twin" not in text
        assert after["state"] == "voting"
    over = vote(client, at, 2, "right", "right")
    assert over["state"] == "finished"
    for pair in over["pairs"]:
        for side in ("left", "right"):
            shown = pixels(client.get(pair[side]).content)
            name = pair["models"][side]["name"]
            own = make(pair["prompt"], model=name, seeds=SEEDS, quality="balanced")["pictures"][0]
            assert np.array_equal(shown, pixels(client.get(f"/v1/pictures/{own}").content))


def test_no_list_and_no_history_has_the_pictures_of_a_comparison(client, compared):
    compared(PROMPTS[:1])
    assert client.get("/v1/jobs").json() == []
    assert client.get("/v1/history").json() == []


def test_votes_are_lines_that_say_who_was_preferred(client, compared):
    at = compared(PROMPTS[:2])
    vote(client, at, 0, "left", "tie")
    vote(client, at, 0, "right", "tie")  # thought better of it: the last one counts
    over = vote(client, at, 1, "right", "tie")
    lines = [json.loads(line) for line in client.get("/v1/votes.jsonl").text.splitlines()]
    assert len(lines) == 6
    for line, pair in zip((lines[2], lines[4]), over["pairs"], strict=True):
        assert line[line["preferred"]]["name"] == pair["models"]["right"]["name"]
    words, picture = client.get("/v1/comparisons/strengths").json()["questions"]
    assert (words["votes"], words["ties"], picture["votes"], picture["ties"]) == (2, 0, 2, 2)
    assert [each["share"] for each in picture["groups"][0]] == pytest.approx([0.5, 0.5])


def test_what_a_crash_leaves_of_a_vote_spoils_no_other(client, service, compared):
    file = service.history.folder / "votes.jsonl"
    file.write_bytes(b'[]\n{"comparison": "x", "pa\xff')
    at = compared(["red\u2028apple\x85\r\n🍎"])
    vote(client, at, 0, "left", "tie")
    words, picture = client.get("/v1/comparisons/strengths").json()["questions"]
    assert (words["votes"], picture["votes"]) == (1, 1)
    (service.history.folder / "comparisons" / f"{at[-16:]}.json").write_text('{"id": ')
    assert client.get(at).status_code == 404


def test_a_bundle_is_not_compared_with_its_copy(client, service, monkeypatch):
    monkeypatch.setitem(service.models, "copy", {**service.models["tiny"], "id": "copy"})
    answer = client.post("/v1/comparisons", json={"a": "tiny", "b": "copy", "prompts": ["owl"]})
    assert (answer.status_code, answer.json()["field"]) == (422, "b")


def test_after_the_names_no_vote_is_taken(client, compared):
    at = compared(PROMPTS[:1])
    vote(client, at, 0, "left", "left")
    answer = client.post(f"{at}/votes", json={"pair": 0, "question": "words", "choice": "right"})
    assert answer.status_code == 409
    assert "models are named" in answer.json()["error"]


@pytest.mark.parametrize(
    ("request_body", "status", "field"),
    [
        ({"a": "tiny", "b": "tiny", "prompts": ["owl"]}, 422, "b"),
        ({"a": "tiny", "b": "none", "prompts": ["owl"]}, 404, "model"),
        ({"a": "tiny", "b": "twin", "prompts": []}, 422, "prompts"),
        ({"a": "tiny", "b": "twin", "prompts": [" "]}, 422, "prompts"),
        ({"a": "tiny", "b": "twin", "prompts": [""]}, 422, "prompts.0"),
        ({"a": "tiny", "b": "twin", "prompts": ["owl"] * 33}, 422, "prompts"),
        ({"a": "tiny", "b": "twin", "prompts": ["owl"], "seeds": [-1]}, 422, "seeds.0"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_with_its_field(client, request_body, status, field):
    answer = client.post("/v1/comparisons", json=request_body)
    assert (answer.status_code, answer.json()["field"]) == (status, field)


def test_a_queue_with_room_for_one_model_makes_none(client, service):
    answer = client.post("/v1/comparisons", json={"a": "tiny", "b": "twin", "prompts": ["owl"] * 20})
    assert answer.status_code == 429
    assert client.get("/health").json()["queue"] == 0


@pytest.mark.parametrize("name", ["0" * 16, "..%2f..%2fvotes", "votes"])
def test_what_is_no_comparison_is_not_found(client, name):
    assert client.get(f"/v1/comparisons/{name}").status_code in (404, 422)
    assert client.get(f"/v1/comparisons/{name}/pairs/0/left").status_code in (404, 422)
