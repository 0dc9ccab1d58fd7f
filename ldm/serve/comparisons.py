"""Blind comparisons of two models: pairs of pictures whose sides are shuffled and unnamed, votes, strengths.

A comparison is a json file below the state's folder. Votes are lines of `votes.jsonl`, which names both
models by the sha256 of their bundles. No history lists a comparison's pictures, since it names models.
"""

import json
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from ldm import UserError
from ldm.io.reading import parse_json, read_json
from ldm.io.writing import append, make_folder, write
from ldm.serve.bradley_terry import Vote, as_json, strengths
from ldm.serve.requests import RANDOM, model_of, submitted
from ldm.serve.routes import Id, Serving, png
from ldm.serve.schemas import MAX_PICTURES, Checked, Generate, Prompt, Seed
from ldm.serve.service import Refused, Service

QUESTIONS = {"words": "Which one follows the words?", "picture": "Which one is the better picture?"}
FOR_A = {"a": 1.0, "b": 0.0, "tie": 0.5}
Side = Literal["left", "right"]
_LOCK = threading.RLock()  # between reading a comparison and writing it


class Compare(Checked):
    """Two models, and what both of them make pictures of."""

    a: Annotated[str, Field(max_length=100)]
    b: Annotated[str, Field(max_length=100)]
    prompts: list[Prompt] = Field(min_length=1, max_length=MAX_PICTURES)
    seeds: list[Seed] | None = Field(None, max_length=8, description="of each prompt; left out: one, random")
    quality: Literal["fast", "balanced", "best"] = "balanced"


class Choice(Checked):
    """The answer to one question about one pair."""

    pair: int = Field(ge=0, lt=MAX_PICTURES)
    question: Literal["words", "picture"]
    choice: Literal["left", "right", "tie"]


routes = APIRouter(prefix="/v1", tags=["comparisons"])


@routes.post("/comparisons", status_code=201)
def compare(service: Serving, asked: Compare) -> dict[str, Any]:
    """Queues the pictures of a comparison; `GET /v1/comparisons/{id}` says which pairs are ready."""
    kept = Comparisons(service)
    return kept.shown(kept.begin(asked))


@routes.get("/comparisons/strengths")
def get_strengths(service: Serving) -> dict[str, Any]:
    """The strengths of all models that were voted on, for each question, with 95 % intervals."""
    return Comparisons(service).strengths()


@routes.get("/comparisons/{name}")
def read(service: Serving, name: Id) -> dict[str, Any]:
    """A comparison: its pairs as far as they are ready; the models' names once all votes are given."""
    kept = Comparisons(service)
    return kept.shown(kept.read(name))


@routes.get("/comparisons/{name}/pairs/{pair}/{side}", response_class=Response)
def picture(service: Serving, name: Id, pair: int, side: Side) -> Response:
    """One picture of a pair, under an address that doesn't name its model."""
    return png(Comparisons(service).picture(name, pair, side))


@routes.post("/comparisons/{name}/votes")
def vote(service: Serving, name: Id, asked: Choice) -> dict[str, Any]:
    """Keeps an answer; the last one to a question counts. Refused once the models are named."""
    return Comparisons(service).vote(name, asked)


@routes.get("/votes.jsonl", response_class=Response)
def votes(service: Serving) -> Response:
    """All votes, a line each."""
    attached = {"content-disposition": 'attachment; filename="votes.jsonl"'}
    return Response(Comparisons(service).lines(), media_type="application/x-ndjson", headers=attached)


class Comparisons:
    """The comparisons of one server, by id, in files alone."""

    def __init__(self, service: Service) -> None:
        self.service, self.folder = service, service.history.folder
        self.votes_file = self.folder / "votes.jsonl"

    def begin(self, asked: Compare) -> dict[str, Any]:
        """Queues the pictures of both models; raises Refused for one that is unknown, or no two models."""
        models = [model_of(self.service, name) for name in (asked.a, asked.b)]
        if models[0]["sha256"] == models[1]["sha256"]:
            raise Refused("both models are the same: choose two different ones", field="b")
        seeds = asked.seeds or [secrets.randbelow(RANDOM)]
        pairs = [(prompt, seed) for prompt in asked.prompts for seed in seeds]
        if 2 * len(pairs) > MAX_PICTURES:
            raise Refused(
                f"{len(pairs)} pairs are too many: the limit is {MAX_PICTURES // 2}", field="prompts"
            )
        wanted = {"prompts": [prompt for prompt, _ in pairs], "seeds": [seed for _, seed in pairs]}
        jobs: dict[str, str] = {}
        try:
            for side, model in zip("ab", models, strict=True):
                request = Generate(**wanted, model=model["id"], quality=asked.quality)
                jobs[side] = submitted(self.service, request, kind="comparison")["id"]
        except Refused:  # the queue had room for one of them
            for job in jobs.values():
                self.service.stop(job)
            raise
        comparison = {
            "id": secrets.token_hex(8),
            "created": time.time(),
            "models": {side: _named(model) for side, model in zip("ab", models, strict=True)},
            "jobs": jobs,
            "pairs": [
                {"prompt": prompt, "seed": seed, "left": secrets.choice("ab"), "pictures": {}, "votes": {}}
                for prompt, seed in pairs
            ],
        }
        self._write(comparison)
        return comparison

    def read(self, name: str) -> dict[str, Any]:
        """A stored comparison, with the pictures that are ready; raises Refused where there is none."""
        with _LOCK:
            try:
                comparison = read_json(self._path(name))
            except (OSError, ValueError):
                raise Refused("there is no such comparison: start a new one", status=404) from None
            before = json.dumps(comparison)
            for side, job in comparison["jobs"].items():
                found = self.service.job(job) or {"pictures": []}
                for pair, picture in zip(comparison["pairs"], found["pictures"], strict=False):
                    if picture is not None:
                        pair["pictures"][side] = picture
            if json.dumps(comparison) != before:
                self._write(comparison)
            return comparison

    def shown(self, comparison: dict[str, Any]) -> dict[str, Any]:
        """A comparison as it is sent: without names until every pair that can be voted on has been."""
        jobs = [self.service.job(job) for job in comparison["jobs"].values()]
        active = [job for job in jobs if job and job["state"] in ("queued", "running")]
        if not active:  # the last pictures may have come since it was read
            comparison = self.read(comparison["id"])
        ready = [pair for pair in comparison["pairs"] if len(pair["pictures"]) == 2]
        over = not active and bool(ready) and all(len(pair["votes"]) == len(QUESTIONS) for pair in ready)
        pairs = [self._pair(comparison, number, over) for number in range(len(comparison["pairs"]))]
        errors = [job["error"] for job in jobs if job and job["error"]]
        return {
            "id": comparison["id"],
            "created": comparison["created"],
            "state": "finished" if over else "making" if active else "voting" if ready else "failed",
            "questions": QUESTIONS,
            "pairs": [pair for pair in pairs if active or pair["left"]],
            "error": errors[0] if errors else None,
            "steps": [sum(job[name] for job in jobs if job) for name in ("step", "steps")],
            "models": comparison["models"] if over else None,
        }

    def _pair(self, comparison: dict[str, Any], number: int, over: bool) -> dict[str, Any]:
        pair = comparison["pairs"][number]
        shown = {"number": number, "prompt": pair["prompt"], "seed": pair["seed"], "votes": pair["votes"]}
        at = f"/v1/comparisons/{comparison['id']}/pairs/{number}"
        whole = len(pair["pictures"]) == 2
        shown |= {side: f"{at}/{side}" if whole else None for side in ("left", "right")}
        sides = {"left": pair["left"], "right": _other(pair["left"])}
        return shown | (
            {"models": {side: comparison["models"][own] for side, own in sides.items()}} if over else {}
        )

    def picture(self, name: str, number: int, side: str) -> bytes:
        """The PNG of a side; raises Refused where it isn't there."""
        pairs = self.read(name)["pairs"]
        pair = pairs[number] if 0 <= number < len(pairs) else {"left": "a", "pictures": {}}
        model = pair["left"] if side == "left" else _other(pair["left"])
        found = self.service.history.read(pair["pictures"].get(model, ""))
        if found is None:
            raise Refused("there is no such picture, or it isn't ready", status=404)
        return found

    def vote(self, name: str, asked: Choice) -> dict[str, Any]:
        """Keeps a vote, and returns the comparison; raises Refused for a pair that can't be voted on."""
        with _LOCK:
            comparison = self.read(name)
            if self.shown(comparison)["state"] == "finished":
                raise Refused(
                    "this comparison is over, and its models are named: start a new one", status=409
                )
            pairs = comparison["pairs"]
            if asked.pair >= len(pairs) or len(pairs[asked.pair]["pictures"]) < 2:
                raise Refused("this pair isn't ready: wait for its pictures", status=409, field="pair")
            pair = pairs[asked.pair]
            sides = {"left": pair["left"], "right": _other(pair["left"]), "tie": "tie"}
            line = {
                "time": time.time(),
                "comparison": name,
                "pair": asked.pair,
                "question": asked.question,
                "preferred": sides[asked.choice],
                "left": pair["left"],
                **comparison["models"],
                "prompt": pair["prompt"],
                "seed": pair["seed"],
            }
            torn = self.lines()[-1:] not in (b"", b"\n")  # by a crash: the new line must not be lost with it
            text = "\n" * torn + json.dumps(line, ensure_ascii=False) + "\n"
            append(self.votes_file, text, below=self.folder)
            pair["votes"][asked.question] = asked.choice
            self._write(comparison)
            return self.shown(comparison)

    def strengths(self) -> dict[str, Any]:
        """The strengths of each question; a question about a pair counts once, by its last vote."""
        last: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in self.lines().split(b"\n"):  # and at no other sign: prompts may have U+2028
            with suppress(UserError, KeyError, TypeError):  # what a crash has left of a line is no vote
                vote = parse_json(line, name=self.votes_file.name)
                if vote["a"]["sha256"] != vote["b"]["sha256"]:
                    last[vote["comparison"], vote["pair"], vote["question"]] = vote
        names = {vote[side]["sha256"]: vote[side]["name"] for vote in last.values() for side in "ab"}
        found = []
        for question, words in QUESTIONS.items():
            own = [vote for vote in last.values() if vote["question"] == question]
            groups = strengths(
                Vote(vote["a"]["sha256"], vote["b"]["sha256"], FOR_A[vote["preferred"]]) for vote in own
            )
            ties = sum(vote["preferred"] == "tie" for vote in own)
            found.append(
                {"question": words, "votes": len(own), "ties": ties, "groups": as_json(groups, names)}
            )
        return {"questions": found}

    def lines(self) -> bytes:
        """The bytes of `votes.jsonl`."""
        return self.votes_file.read_bytes() if self.votes_file.is_file() else b""

    def _path(self, name: str) -> Path:
        return self.folder / "comparisons" / f"{name}.json"

    def _write(self, comparison: dict[str, Any]) -> None:
        make_folder(self.folder / "comparisons", below=self.folder)
        write(self._path(comparison["id"]), json.dumps(comparison, ensure_ascii=False), below=self.folder)


def _other(side: str) -> str:
    return "b" if side == "a" else "a"


def _named(model: Any) -> dict[str, str]:
    return {"name": model["id"], "sha256": model["sha256"]}
