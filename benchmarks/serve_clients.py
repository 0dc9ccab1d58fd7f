"""Clients that do what they should not: cancel, hang up, read slowly, lead out of folders, send rubbish."""

import json
import random
import re
import time

from benchmarks.serving import (
    GENERATIONS,
    Row,
    Server,
    asked,
    connected,
    ended,
    made,
    raw,
    request_of,
)


def cancels(server: Server, count: int) -> Row:
    """Stops at random moments: nobody else's job is touched, and the server is free soon after."""
    row, chance = Row("cancels", count), random.Random(0)
    with server.client() as client:
        kept = client.post("/v1/generate", json=asked(1)[0]).json()["id"]
        for request in asked(count, options={"steps": 250}):
            job = client.post("/v1/generate", json=request).json()["id"]
            time.sleep(chance.uniform(0, 0.3))
            row.check(client.delete(f"/v1/jobs/{job}").status_code in (200, 409), "a stop failed")
            row.check(client.delete(f"/v1/jobs/{job}").status_code == 409, "a second stop was accepted")
        row.check(client.delete(f"/v1/jobs/{'0' * 16}").status_code == 404, "an unknown job was stopped")
        began = time.monotonic()
        made(client, asked(1)[0])
        row.says = f"next picture after {time.monotonic() - began:.1f} s"
        row.check(ended(client, kept)["state"] == "finished", "a job of another client was stopped")
    return row


def hang_ups(server: Server, count: int) -> Row:
    """Clients that close their connection at random moments: their work is dropped, others' is not."""
    row, chance = Row("clients that hang up", count), random.Random(1)
    body = json.dumps({"prompt": "owl", "n": 10, "quality": "high"}).encode()
    for _ in range(count):
        with connected(server) as line:
            line.sendall(request_of("POST", GENERATIONS, body)[: chance.randrange(20, 10_000)])
            time.sleep(chance.uniform(0, 0.1))
    with server.client() as client:
        began = time.monotonic()
        made(client, asked(1)[0])
        waited = time.monotonic() - began
        listed = client.get("/v1/jobs?limit=200").json()
    active = any(each["state"] in ("queued", "running") for each in listed)
    row.check(not active, "a job continues after its client has gone")
    row.says = f"next picture after {waited:.1f} s"
    return row


def slow_readers(server: Server, count: int) -> Row:
    """Clients that send half a request, or don't read their answer: others are answered as fast."""
    row = Row("slow readers", count)
    lines = [connected(server) for _ in range(count)]
    try:
        with server.client() as client:
            job = client.post("/v1/generate", json=asked(1)[0]).json()["id"]
            for number, line in enumerate(lines):
                request = request_of("GET", f"/v1/jobs/{job}/events" if number % 2 else "/v1/pictures.zip")
                line.sendall(request if number % 3 else request[:30])
            seconds = []
            for _ in range(20):
                began = time.monotonic()
                row.check(client.get("/health").status_code == 200, "the server did not answer")
                seconds.append(time.monotonic() - began)
            row.check(ended(client, job)["state"] == "finished", "a job did not finish")
        row.says = f"/health meanwhile in at most {1000 * max(seconds):.0f} ms"
    finally:
        for line in lines:
            line.close()
    return row


def traversals(server: Server, count: int) -> Row:
    """Paths that lead out of a folder, in many spellings, as no client tidies them up."""
    row, chance = Row("path traversals", count), random.Random(2)
    steps = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "..\\", "..%5c", "....//", "%c0%ae%c0%ae/")
    starts = (
        "/",
        "//",
        "/v1/pictures/",
        "/v1/pictures.zip?ids=",
        "/v1/jobs/",
        "/v1/runs/",
        "/v1/comparisons/",
    )
    ends = ("secret.txt", "state/serve.sqlite", "etc/passwd", "etc/passwd%00.png", "proc/self/environ")
    for _ in range(count):
        path = chance.choice(starts) + chance.choice(steps) * chance.randrange(1, 9) + chance.choice(ends)
        answer = raw(server, request_of("GET", path))
        leaks = (b"the secret", b"root:", b"SQLite format", b"PATH=")
        row.check(not any(leak in answer for leak in leaks), f"{path} leaks")
        row.check(b" 500 " not in answer[:20] and bool(answer), f"{path}: {answer[:40]!r}")
    row.says = "0 leaks" if not row.failures else ""
    return row


def malformed(server: Server, count: int) -> Row:
    """Bodies with bytes changed, cut, repeated, of wrong types: refused or, if still whole, accepted."""
    row, chance, statuses = Row("malformed bodies", count), random.Random(3), set()
    good = json.dumps({"prompts": ["fox"], "seeds": [1], "quality": "fast", "options": {"steps": 4}}).encode()
    for _ in range(count):
        body = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(body))
            body[at : at + chance.randrange(3)] = chance.choice(
                (b"", b"\xff", b'"', b"[" * 2000, b"NaN", b"1e999", b"\\ud800", b"-1", b"{}", b"\0")
            )
        kind = chance.choice(("application/json",) * 4 + ("text/plain", "multipart/form-data; boundary=x"))
        answer = raw(server, request_of("POST", "/v1/generate", bytes(body), kind=kind))
        found = re.match(rb"HTTP/1.1 (\d+)", answer)
        statuses.add(found[1].decode() if found else "none")
        row.check(
            found is not None and found[1][:1] in (b"2", b"4"), f"{answer[:40]!r} for {bytes(body[:60])!r}"
        )
    row.says = f"answers {', '.join(sorted(statuses))}"
    return row
