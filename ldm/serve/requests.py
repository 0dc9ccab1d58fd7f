"""Requests of the API made into jobs, with all that they name checked before they are queued."""

import io
import secrets
import struct
import threading
from collections.abc import Mapping
from typing import Any

from PIL import Image
from pydantic import ValidationError

from ldm import UserError
from ldm.construct import nearest
from ldm.data.decode import EncodedPicture
from ldm.io.fields import Fields
from ldm.io.pictures import encode_png
from ldm.io.reading import parse_json
from ldm.serve.history import History
from ldm.serve.schemas import MAX_PICTURES, Generate
from ldm.serve.service import Refused, Service
from ldm.serve.worker import REQUEST, Task

SIDE = 1024  # pixels of an upload's longer side; a larger one is made smaller
MOST = 2**24  # pixels of a PNG or WebP, which are decoded in full: 340 MiB at once
MOST_JPEG = 2**25  # of which as few as are wanted are decoded, but a progressive one holds its frequencies
LONGEST = 2**14  # pixels of a side: each row costs memory of its own
DECODING = threading.Lock()  # one picture at a time, so that not many large ones are in memory
# what Pillow raises of a damaged or forged PNG
DAMAGE = (OSError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)
RANDOM = 2**32  # seeds that are chosen here lie below: short enough to be typed


def submitted(service: Service, asked: Generate, *, kind: str = "picture") -> dict[str, Any]:
    """The job of a request, queued; `kind` is that of its pictures. Raises Refused with the wrong field."""
    model = model_of(service, asked.model)
    prompts = [prompt for prompt in asked.prompts for _ in range(asked.count)]
    if len(prompts) > MAX_PICTURES:
        raise Refused(
            f"{len(prompts)} pictures are too many for one job: the limit is {MAX_PICTURES}", field="count"
        )
    for prompt in asked.prompts:
        if not prompt.strip():
            raise Refused("a prompt is empty: write one or more words", field="prompts")
    seeds = asked.seeds or [None] * len(prompts)
    if len(seeds) != len(prompts):
        raise Refused(
            f"{len(seeds)} seeds for {len(prompts)} pictures: give one for each, or none", field="seeds"
        )
    options = options_of(model, asked)
    image, mask = source_of(service, model, asked)
    chosen = [secrets.randbelow(RANDOM) if seed is None else seed for seed in seeds]
    request = asked.model_dump(exclude_none=True) | {"model": model["id"]}
    tasks = []
    for prompt, seed in zip(prompts, chosen, strict=True):
        own = Generate(**request | {"prompts": [prompt], "seeds": [seed], "count": 1})
        tasks.append(Task(prompt, seed, image, mask, own.model_dump_json(exclude_none=True)))
    strength = asked.source.strength if asked.source else None
    chosen_options = {"options": options, "strength": strength}
    return service.submit(request, model=model["id"], tasks=tasks, **chosen_options, kind=kind)


def model_of(service: Service, name: str | None) -> Mapping[str, Any]:
    """The description of a model, the first one where none is named; raises Refused for an unknown id."""
    if name is None:
        return next(iter(service.models.values()))
    if name not in service.models:
        there = ", ".join(service.models)
        raise Refused(
            f"there is no model {name!r}{nearest(name, service.models)}; there are: {there}",
            status=404,
            field="model",
        )
    return service.models[name]


def options_of(model: Mapping[str, Any], asked: Generate) -> dict[str, Any]:
    """A preset's options with those that are asked for; raises Refused for one that the model lacks."""
    own = {name: value for name, value in asked.options.model_dump(exclude_none=True).items() if value != ""}
    for name, value in own.items():
        if name not in model["options"]:
            there = ", ".join(model["options"]) or "none"
            raise Refused(
                f"the model {model['id']} has no option {name!r}; it has {there}", field=f"options.{name}"
            )
        known = model["choices"].get(name)
        if known and value not in known:
            raise Refused(
                f"there is no {name} {value!r}{nearest(value, known)}; there are: {', '.join(known)}",
                field=f"options.{name}",
            )
        default = model["default"][name]
        if isinstance(default, int):  # 1 and 1.0 are the same number in json
            if value != int(value):
                raise Refused(f"{name}={value} must be a whole number", field=f"options.{name}")
            own[name] = int(value)
    return {**model["presets"][asked.quality], **own}


def source_of(service: Service, model: Mapping[str, Any], asked: Generate) -> tuple[Any, Any]:
    """The files of the picture to start from and of its mask; raises Refused where they can't be used."""
    if asked.source is None:
        return None, None
    if not model["starts_from_pictures"]:
        raise Refused(f"the model {model['id']} can't start from a picture", field="source")
    history, found = service.history, []
    for field, name in (("picture", asked.source.picture), ("mask", asked.source.mask)):
        facts = None if name is None else history.facts(name)
        if name is not None and facts is None:
            raise Refused(f"there is no picture {name}: upload it again", status=404, field=f"source.{field}")
        found.append(facts)
    picture, mask = found
    sizes = [(each["width"], each["height"]) for each in found if each]
    if len(set(sizes)) > 1:
        (width, height), (mask_width, mask_height) = sizes
        raise Refused(
            f"the mask has {mask_width} x {mask_height} pixels and the picture {width} x {height}:"
            " take a mask of the picture's size",
            field="source.mask",
        )
    return history.path(picture["id"]), None if mask is None else history.path(mask["id"])


def uploaded(history: History, data: bytes) -> dict[str, Any]:
    """A picture of a user, read within the limits of all pictures, stored as PNG; raises Refused."""
    try:
        encoded = EncodedPicture(data)
        check_work(encoded)
        scale = min(1.0, SIDE / max(encoded.height, encoded.width))
        size = (max(1, round(encoded.width * scale)), max(1, round(encoded.height * scale)))
        with DECODING:
            picture = Image.fromarray(encoded.pixels(at_least=(size[1], size[0])))
    except UserError as error:
        raise Refused(
            f"the file is no picture ({error}): take a PNG, JPEG or WebP file", field="file"
        ) from error
    kept = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
    facts = {"width": size[0], "height": size[1]}
    return {"id": history.add("upload", encode_png(kept, pnginfo=None), facts)} | facts


def check_work(picture: EncodedPicture) -> None:
    """Raises UserError for a picture that takes minutes or gigabytes to decode, however few its bytes."""
    size, pixels = f"{picture.width} x {picture.height}", picture.width * picture.height
    most = MOST if picture.format in ("PNG", "WEBP") else MOST_JPEG
    if pixels > most:
        raise UserError(f"too many pixels: {size}, more than {most:,}")
    if max(picture.width, picture.height) > LONGEST:
        raise UserError(f"too long a side: {size}, more than {LONGEST:,}")


def checked_settings(service: Service, data: bytes) -> dict[str, Any]:
    """The settings in a PNG: the whole request of one of this server's, some of one of `ldm.sample`.

    Anybody may have written the file: what it says passes the checks of a request. Raises Refused where it
    carries none.
    """
    texts = texts_of(data)
    try:
        if REQUEST in texts:
            asked = Generate(**parse_json(texts[REQUEST], name="its request"))
        elif "ldm" in texts:
            record = Fields.of(parse_json(texts["ldm"], name="its record"), name="its record")
            asked = asked_of(service, record)
        else:
            raise Refused(
                "the picture carries no settings: it was not made by ldm, or was saved anew", field="file"
            )
    except (UserError, ValidationError, TypeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(
            "the settings in the picture are damaged: take the file as it was downloaded"
        ) from error
    return {
        "prompt": asked.prompts[0],
        "seed": asked.seeds[0] if asked.seeds else None,
        "model": asked.model,
        "quality": asked.quality,
        "options": asked.options.model_dump(exclude_none=True),
        "source": None if asked.source is None else asked.source.model_dump(exclude_none=True),
        "known": asked.model in service.models,
    }


def asked_of(service: Service, record: Fields) -> Generate:
    """The request that gives the picture of a record of `ldm.sample`, as far as its options go."""
    ids = {each["sha256"]: name for name, each in service.models.items()}
    options = {name: record.values.get(name) for name in ("negative", "scale", "steps")}
    return Generate(
        prompts=[record.text("prompt")],
        seeds=[record.values.get("seed")],
        model=ids.get(record.text("bundle")),
        quality="best",
        options={name: value for name, value in options.items() if value not in (None, "")},
    )


def texts_of(data: bytes) -> dict[str, str]:
    """The texts in a PNG; raises Refused where the bytes are none."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.width * picture.height > MOST or max(picture.size) > LONGEST:
                raise Refused(f"the picture has more than {MOST:,} pixels", status=413, field="file")
            with DECODING:
                picture.load()  # texts may come after the pixels
            return dict(picture.text)
    except DAMAGE as error:
        if isinstance(error, Refused):
            raise
        raise Refused("the file is no PNG: drop a picture that was downloaded here", field="file") from error
