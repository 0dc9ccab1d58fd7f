"""Facts about jobs: batches change no byte, the queue is bounded, stops stop, and what is lost is said."""

import io
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from PIL import Image

from ldm import UserError
from ldm.serve.history import History
from ldm.serve.jobs import Job, Slot
from ldm.serve.worker import Task

DATA = 'data: {"id"'
PROMPTS = ["red apple", "a cat with a hat", "blue car", "green tree", "pizza", "fox"]


def until(condition):
    """What a condition returns once it is true."""
    while not (found := condition()):
        time.sleep(0.005)
    return found


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def post(client, prompt: str = "fox", **asked) -> str:
    """The id of a job that is queued now."""
    return client.post("/v1/generate", json={"prompts": [prompt], **asked}).json()["id"]


def contents(client, job) -> list[bytes]:
    return [client.get(f"/v1/pictures/{name}").content for name in job["pictures"]]


def test_a_picture_has_the_same_bytes_alone_and_beside_others(client, make, wait):
    asked = [{"prompts": [prompt], "seeds": [seed]} for seed, prompt in enumerate(PROMPTS)]
    alone = [contents(client, make(each["prompts"][0], seeds=each["seeds"])) for each in asked]
    jobs = [post(client, each["prompts"][0], seeds=each["seeds"]) for each in asked]
    assert [contents(client, wait(name)) for name in jobs] == alone
    assert len({each[0] for each in alone}) == len(PROMPTS)


def test_requests_that_do_not_fit_are_not_mixed(client, make, wait):
    kinds = [{}, {"quality": "fast"}, {"options": {"scale": 1.0}}, {"options": {"negative": "a hat"}}]
    alone = [contents(client, make(seeds=[3], **kind)) for kind in kinds]
    posted = [
        client.post("/v1/generate", json={"prompts": ["red apple"], "seeds": [3], **kind}) for kind in kinds
    ]
    assert [contents(client, wait(each.json()["id"])) for each in posted] == alone
    assert len({each[0] for each in alone}) == len(kinds)


def test_a_record_reproduces_its_picture(picture, command, bundle_path, tmp_path):
    file = picture(seeds=[5], options={"negative": "a hat", "sampler": "ddim"}, quality="fast")
    said = command("ldm.sample", f"again={file}", f"bundle={bundle_path}", f"out={tmp_path / 'again'}").out
    assert f"every pixel is that of {file}" in said


def test_a_full_queue_answers_429_and_when_to_come_again(client, service):
    statuses, waits = [], []
    for _ in range(4):
        answer = client.post("/v1/generate", json={"prompts": ["red apple"], "count": 12, "quality": "best"})
        statuses.append(answer.status_code)
        waits.append(answer.headers.get("retry-after"))
    assert statuses[:2] == [202, 202]
    assert statuses[-1] == 429
    assert int(waits[-1]) >= 1
    assert "the queue is full" in answer.json()["error"]
    assert service.health()["queue"] <= service.limit


def test_a_stopped_job_makes_nothing_more_and_a_neighbour_is_not_harmed(client, service, wait):
    one, other = (post(client, count=6, options={"steps": 10}) for _ in range(2))
    assert client.delete(f"/v1/jobs/{one}").json()["state"] == "stopped"
    ended = wait(other)
    assert ended["state"] == "finished"
    assert None not in ended["pictures"]
    assert service.job(one)["pictures"].count(None) >= 2
    again = client.delete(f"/v1/jobs/{one}")
    assert (again.status_code, again.json()["error"]) == (
        409,
        "the job is stopped and can't be stopped any more",
    )
    assert client.delete("/v1/jobs/0123456789abcdef").status_code == 404


def test_many_questions_do_not_hold_up_pictures(client, service, make, wait):
    (asked,) = make(PROMPTS[0])["pictures"]

    def answered(_: int) -> float:
        client.get(f"/v1/pictures/{asked}/attention")
        return time.time()

    block = post(client, options={"steps": 250})
    until(lambda: service.job(block)["step"])
    with ThreadPoolExecutor(4) as pool:
        times = pool.map(answered, range(4))
        until(lambda: len(service._questions) == 4)
        (name,) = wait(post(client, quality="fast"))["pictures"]
        assert service.history.facts(name)["created"] < sorted(times)[1]


def test_skip_drops_what_is_being_made_and_goes_on(client, service, wait):
    job = post(client, count=6, options={"steps": 25})
    until(lambda: service.job(job)["step"])
    assert client.post(f"/v1/jobs/{job}/skip").status_code == 200
    ended = wait(job)
    assert ended["state"] == "finished"
    assert [name is None for name in ended["pictures"]] == [True] * 4 + [False] * 2
    assert client.post(f"/v1/jobs/{job}/skip").status_code == 409


def test_a_killed_worker_is_replaced_and_its_job_fails_in_words(client, service, make, wait):
    running = post(client, options={"steps": 250})
    until(lambda: service.job(running)["step"])
    waiting = post(client, "owl", quality="fast")
    os.kill(service.networks._process.pid, signal.SIGKILL)
    failed = wait(running)
    assert failed["state"] == "failed"
    assert failed["error"] == "the process that generates pictures ended (SIGKILL): try it again"
    assert wait(waiting)["state"] == "finished"


def test_an_error_of_one_job_is_not_its_neighbours(client, service, wait):
    one, other = (client.post("/v1/uploads", files={"file": png(16, 16)}).json()["id"] for _ in range(2))
    block = post(client, options={"steps": 40})
    jobs = [post(client, "owl", source={"picture": name}) for name in (one, other)]
    client.delete(f"/v1/pictures/{one}")
    wait(block)
    failed, made = (wait(name) for name in jobs)
    assert (failed["state"], failed["error"]) == (
        "failed",
        "the picture to start from was deleted: choose another one",
    )
    assert made["state"] == "finished"


def test_a_restart_shows_what_was_finished_and_marks_what_was_not(tmp_path, client, make):
    kept = make()
    history = History(tmp_path / "other")
    for state in ("queued", "running", "finished"):
        job = Job(f"{state:0<16}", {}, "tiny", [Slot(Task("fox", 1, None, None, ""))], {}, None)
        job.state = state
        history.put_job(job.shown(0))
    history._base.close()  # as a killed process does
    again = {job["id"].rstrip("0"): job for job in History(tmp_path / "other").jobs(10)}
    assert {name: job["state"] for name, job in again.items()} == {
        "queued": "interrupted",
        "running": "interrupted",
        "finished": "finished",
    }
    assert "generate it again" in again["running"]["error"]
    assert kept["state"] == "finished"


def test_previews_are_shown_while_a_picture_is_made_and_kept_as_a_strip(client, service, wait):
    job = post(client, options={"steps": 40})
    address = until(lambda: service.job(job)["previews"][0])
    shown = client.get(address)
    assert shown.content.startswith(b"\x89PNG")
    (name,) = wait(job)["pictures"]
    with Image.open(io.BytesIO(service.history.strip(name))) as strip:
        assert strip.size == (20 * 16, 16)  # every second step
    assert client.get(address).status_code == 404  # the picture itself has taken their place


def test_events_follow_a_job_to_its_end(client):
    job = post(client)
    text = client.get(f"/v1/jobs/{job}/events").text
    seen = [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith('data: {"id')
    ]
    assert seen[-1]["state"] == "finished"
    steps = [each["step"] for each in seen]
    assert steps == sorted(steps)
    assert text.endswith("event: end\ndata: {}\n\n")


def test_pictures_that_can_not_be_stored_fail_in_words_and_the_next_ones_are_made(service, make, capsys):
    folder = service.history.folder / "pictures"
    folder.write_text("a file in the folder's place")
    failed = make()
    assert (failed["state"], failed["error"]) == (
        "failed",
        "the picture can't be stored: the server's log says why",
    )
    assert str(folder) in capsys.readouterr().err
    folder.unlink()
    assert make()["state"] == "finished"


@pytest.mark.parametrize("state", ["a file", "another server's"])
def test_a_folder_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, state, service):
    folder = service.history.folder
    if state == "a file":
        folder = tmp_path / "file"
        folder.write_text("")
    with pytest.raises((UserError, OSError), match="another server uses it" if state != "a file" else "file"):
        History(folder)


def test_the_oldest_pictures_that_no_history_lists_are_removed_beyond_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.serve.history.UNLISTED", 3)
    monkeypatch.setattr("ldm.serve.history.UNLISTED_BYTES", 1000)
    with closing(History(tmp_path)) as history:
        source, mask = (history.add("upload", bytes(10), {}) for _ in range(2))
        shown = history.add("picture", b"x", {"request": {"source": {"picture": source, "mask": mask}}})
        others = [history.add(kind, bytes(10), {}) for kind in ("upload", "comparison", "upload", "upload")]
        assert [history.facts(name) is not None for name in others] == [False, True, True, True]
        large = history.add("upload", bytes(990), {})  # beyond the limit of bytes with all but the newest one
        there = [name for name in (source, mask, shown, *others, large) if history.path(name).is_file()]
        assert there == [source, mask, shown, others[-1], large]
        history.delete(shown)
        history.add("upload", bytes(1), {})
        assert not history.path(source).is_file()  # nothing that is shown started from it any more
