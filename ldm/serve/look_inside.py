"""A look inside a generated picture: its nearest training pictures, the words' maps, its steps."""

import io
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from PIL import Image

from ldm import UserError
from ldm.serve.routes import Id, Serving, found, png
from ldm.serve.service import Refused, Service

PATIENCE = 120.0  # seconds: the training set is read at the first question


routes = APIRouter(prefix="/v1/pictures", tags=["look inside"])


def facts_of(service: Service, name: str) -> dict[str, Any]:
    """The entry of a picture in the list; raises Refused if it is missing, or its model isn't loaded."""
    facts = found(service.history.facts(name, "picture"))
    if facts["model"] not in service.models:
        remedy = "start the server with it"
        raise Refused(f"the model {facts['model']} of this picture is not loaded: {remedy}", status=409)
    return facts


@routes.get("/{name}/nearest")
def nearest(service: Serving, name: Id) -> dict[str, Any]:
    """The training pictures that a picture is most like; takes a while at the first time."""
    facts = facts_of(service, name)
    return service.ask(facts["model"], nearest_of, str(service.history.path(name)), wait=PATIENCE)


@routes.get("/{name}/attention")
def attention(service: Serving, name: Id) -> dict[str, Any]:
    """For each word a map of where it was read; generates the picture once more."""
    facts = facts_of(service, name)
    return service.ask(facts["model"], attention_of, facts["settings"], wait=PATIENCE)


@routes.get("/{name}/filmstrip")
def filmstrip(service: Serving, name: Id) -> dict[str, Any]:
    """The previews of a picture's steps: how many there are, and where the strip of them is."""
    found(service.history.facts(name, "picture"))
    strip = service.history.strip(name)
    if strip is None:
        return {"sentence": "This system shows no steps, or they were not kept.", "count": 0, "url": None}
    with Image.open(io.BytesIO(strip), formats=("PNG",)) as picture:
        count = picture.width // picture.height
    return {"sentence": "", "count": count, "url": f"/v1/pictures/{name}/filmstrip/strip"}


@routes.get("/{name}/filmstrip/strip", response_class=Response)
def strip(service: Serving, name: Id) -> Response:
    """All previews of a picture beside each other, first step first."""
    return png(found(service.history.strip(name), "filmstrip"))


# Called in the process that has the networks; what they import stays out of the one that answers requests.


def nearest_of(opened: Any, file: str) -> dict[str, Any]:
    """What `nearest_pictures` returns for a file."""
    from ldm.serve.explanations import nearest_pictures

    return nearest_pictures(opened.bundle, Path(file))


def attention_of(opened: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """What `heat_maps` returns for the record of a picture."""
    from ldm.sampling.jobs import Job
    from ldm.sampling.record import settings_of
    from ldm.serve.explanations import heat_maps

    own = opened.generator.settings()
    changed = {name: value for name, value in settings_of(facts).items() if own.get(name) != value}
    files = {name: Path(facts[name]["file"]) for name in ("image", "mask") if name in facts}
    if not all(file.is_file() for file in files.values()):
        raise UserError("the picture that this one was started from was deleted: there are no maps")
    fields = {name: facts[name] for name in ("prompt", "seed", "negative", "strength") if name in facts}
    job = Job(name="again", **fields, **files)
    return heat_maps(opened.with_options(**changed), job)
