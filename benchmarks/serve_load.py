"""`ldm.serve` under load, with the shipped model: bytes, the queue, bad clients, memory, throughput.

    python -m benchmarks.serve_load [--requests 100] [--pictures 1000] [--json load.json]

Starts servers at addresses of this machine only and ends them. Prints a row for each kind of load, with what
was wrong; exits with 1 if anything was. `--requests 8 --pictures 12` rehearses it, and its times say nothing.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import httpx

from benchmarks import serve_clients
from benchmarks.serving import (
    GENERATIONS,
    PROMPTS,
    Row,
    Server,
    asked,
    ended,
    free_port,
    made,
    serving,
    status,
)

STEPS = 12  # of `balanced`
QUEUE = 64  # pictures that may wait in the test of the queue
TRAVERSALS, BODIES = 300, 200
GROWTH = 64  # MiB that memory may grow from the first fifth of the pictures to the end
PEAK = 1.2 * 1024  # MiB of server and worker together


def first_picture(folder: Path) -> Row:
    """Seconds from the start of the command, and from the click on a server that runs, to a picture."""
    row, request = Row("first picture", 2), asked(1)[0]
    began = time.monotonic()
    with serving(folder) as server, server.client() as client:
        made(client, request)
        cold, began = time.monotonic() - began, time.monotonic()
        made(client, request)
        warm = time.monotonic() - began
        client.post("/v1/generate", json=request | {"count": 40, "seeds": None})
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        server.process.wait()
        end = time.monotonic() - began
    row.check(warm < 3, "it took more than 3 seconds after the click")
    row.check(end < 2, f"Ctrl-C took {end:.1f} seconds to end the server")
    row.says = f"cold {cold:.1f} s, warm {warm:.2f} s; Ctrl-C ends it in {end:.2f} s"
    return row


def same_bytes(server: Server, count: int) -> Row:
    """Requests at once and one by one have the same bytes; pictures a second of both."""
    row, requests = Row("same bytes at once and one by one", count), asked(count)
    with server.client() as client, ThreadPoolExecutor(count) as pool:
        began = time.monotonic()
        together = list(pool.map(lambda request: made(client, request), requests))
        at_once, began = count / (time.monotonic() - began), time.monotonic()
        alone = [made(client, request) for request in requests]
        one_by_one = count / (time.monotonic() - began)
    different = sum(one != other for one, other in zip(together, alone, strict=True))
    row.check(different == 0, f"{different} pictures differ")
    row.check(len(set(alone)) == count, "two requests have the same picture")
    row.says = f"{at_once:.2f} pictures/s at once, {one_by_one:.2f} one by one: {at_once / one_by_one:.2f}x"
    return row


def full_queue(folder: Path, count: int) -> Row:
    """More than the queue takes: each request is accepted and made, or refused with a time to come again."""
    row = Row("queue cap", count)
    with (
        serving(folder, f"queue={QUEUE}") as server,
        server.client() as client,
        ThreadPoolExecutor(count) as pool,
    ):
        answers = list(
            pool.map(lambda each: client.post("/v1/generate", json=each), asked(count, quality="fast"))
        )
        accepted = [each.json()["id"] for each in answers if each.status_code == 202]
        refused = [each for each in answers if each.status_code == 429]
        row.check(len(accepted) + len(refused) == count, "an answer is neither 202 nor 429")
        row.check(count <= 2 * QUEUE or bool(refused), "nothing was refused")
        row.check(all(int(each.headers["retry-after"]) > 0 for each in refused), "no Retry-After")
        lost = sum(ended(client, job)["state"] != "finished" for job in accepted)
        row.check(lost == 0, f"{lost} accepted jobs were lost")
    row.says = f"{len(accepted)} made, {len(refused)} refused"
    return row


def memory(server: Server, count: int) -> Row:
    """Many pictures, made and deleted by nobody: what server and worker hold does not grow."""
    row, held = Row("memory over many pictures", count), []
    with server.client() as client:
        for start in range(0, count, 20):
            jobs = [
                client.post("/v1/generate", json=each | {"quality": "fast"}).json()["id"]
                for each in asked(20)
            ]
            lost = sum(ended(client, job)["state"] != "finished" for job in jobs)
            row.check(lost == 0, f"{lost} jobs were lost after {start} pictures")
            held.append(server.resident())
    growth = held[-1] - held[len(held) // 5]
    row.check(growth < GROWTH, f"it grew by {growth:.0f} MiB")
    row.check(server.peak() < PEAK, f"the peak is {server.peak():.0f} MiB")
    row.says = f"{held[len(held) // 5]:.0f} to {held[-1]:.0f} MiB, peak {server.peak():.0f} MiB"
    return row


def beside_diffusers(server: Server, folder: Path, count: int) -> Row:
    """Pictures a second of concurrent requests to the same route, of ours and of diffusers' pipeline."""
    row, port = Row("throughput beside diffusers", count), free_port()
    exported = folder / "diffusers"
    command = [sys.executable, "-m", "ldm.export", "bundle=shipped", "to=diffusers", f"out={exported}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    theirs = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serve_diffusers", str(exported), str(port), str(STEPS)]
    )
    try:
        rates = [rate(address, count) for address in (server.address, f"http://127.0.0.1:{port}")]
        peak = status(theirs.pid, "VmHWM")
    finally:
        theirs.kill()
        theirs.wait()
    ours, other = rates
    row.says = f"{ours:.2f} and {other:.2f} pictures/s: {ours / other:.2f}x"
    row.says += f"; peaks {server.peak():.0f} and {peak:.0f} MiB"
    return row


def rate(address: str, count: int) -> float:
    """Pictures a second of requests that are sent at once."""
    with httpx.Client(base_url=address, timeout=600) as client, ThreadPoolExecutor(count) as pool:

        def generate(number: int) -> None:
            request = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}
            client.post(GENERATIONS, json=request).raise_for_status()

        while True:  # until the server is up, and warm
            try:
                generate(0)
                break
            except httpx.ConnectError:
                time.sleep(0.5)
        began = time.monotonic()
        list(pool.map(generate, range(count)))
        return count / (time.monotonic() - began)


def rows(folder: Path, requests: int, pictures: int) -> Iterator[Row]:
    """Every kind of load, one after the other."""
    yield first_picture(folder / "first")
    yield full_queue(folder / "queue", 3 * requests)
    with serving(folder / "load") as server:
        yield same_bytes(server, requests)
        yield serve_clients.cancels(server, max(4, requests // 2))
        yield serve_clients.hang_ups(server, max(4, requests // 2))
        yield serve_clients.slow_readers(server, max(4, requests // 5))
        yield serve_clients.traversals(server, TRAVERSALS)
        yield serve_clients.malformed(server, BODIES)
        yield memory(server, pictures)
        last = beside_diffusers(server, folder, min(requests, 32))
        last.check(server.process.poll() is None, "the server has crashed")
        yield last


def main() -> int:
    """Prints the table; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    found = []
    print("| load | tries | wrong | measured |\n| --- | ---: | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), options.requests, options.pictures):
            wrong = "; ".join(row.failures[:3]) or "nothing"
            print(f"| {row.name} | {row.tries} | {wrong} | {row.says} |", flush=True)
            found.append(row)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return int(any(row.failures for row in found))


if __name__ == "__main__":
    sys.exit(main())
