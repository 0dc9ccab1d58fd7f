"""What is measured: a bundle that generates pictures, a folder of pictures, or a split of real ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.evaluation.captions import Request
from ldm.evaluation.feature_pass import OWN_CLIP, Draw, Observers, OwnClip, drawn_by
from ldm.evaluation.pictures import Pictures, fit
from ldm.evaluation.protocol import describe
from ldm.evaluation.reference_set import BATCH
from ldm.generators.generator import Opened, by_content, files_of
from ldm.tokenizers import Tokenizer

ELSEWHERE_DRAWN = "not known: the pictures were there"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Pictures for requests, with where they come from.

    Attributes:
        kind: "bundle" or "pictures".
        draw: requests to pictures.
        path, sha256, origin: the place, the identity and what is told of the training.
        size: side of its pictures in pixels.
        generation: how its pictures are generated, for the protocol: the generator's settings and `nfe`.
        batch_size: pictures that are generated together.
        files: those that its settings name, {path: ..., sha256: ...} by dotted key.
        params: of the network that was trained; null where it isn't known.
        judges: networks of its own that look beside the protocol's.
        pictures: those that are measured, where they are there already.
        tokenizer: that reads its prompts; null where nobody knows it.
        round_trip: through its autoencoder, uint8 to uint8; null where it has none.
    """

    kind: Literal["bundle", "pictures"]
    draw: Draw
    path: str
    sha256: str
    size: int
    generation: Mapping[str, Any]
    batch_size: int = BATCH
    origin: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    params: int | None = None
    judges: Observers = field(default_factory=lambda: Observers(pictures={}))
    pictures: Pictures | None = None
    tokenizer: Tokenizer | None = None
    round_trip: Callable[[Tensor], Tensor] | None = None

    def at(self, size: int) -> "Subject":
        """The same with all its pictures brought to a protocol's size."""
        through = self.round_trip
        if size == self.size:
            return self
        return replace(
            self,
            draw=lambda requests: fit(self.draw(requests), size=size),
            round_trip=through and (lambda images: fit(through(fit(images, size=self.size)), size=size)),
            size=size,
        )


def bundle_subject(opened: Opened, *, device: torch.device, batch_size: int) -> Subject:
    """A bundle that was opened: its generator's pictures.

    Args:
        device: where its own judges look.
        batch_size: pictures that it generates together.
    """
    generator, bundle, settings = opened.generator, opened.bundle, opened.generator.settings()
    return Subject(
        kind="bundle",
        draw=drawn_by(generator),
        path=str(bundle.path),
        sha256=bundle.sha256,
        origin=bundle.config.get("origin", {}),
        size=generator.size,
        files=files_of(settings),
        params=generator.num_parameters,
        generation={name: described(value) for name, value in by_content(settings).items()}
        | {"nfe": generator.nfe},
        batch_size=batch_size,
        judges=own_judges(bundle, device=device),
        tokenizer=generator.tokenizer,
        round_trip=generator.reconstruct,
    )


def described(value: Any) -> Any:
    """A setting as the protocol tells it: a config node as one line, all else as it is."""
    return describe(value) if isinstance(value, Mapping) and "_target_" in value else value


def picture_subject(pictures: Pictures, *, path: str, size: int) -> Subject:
    """Pictures that are there: each is found by the key of the picture that its caption belongs to."""
    return Subject(
        kind="pictures",
        draw=found_in(pictures, path=path),
        path=path,
        sha256=pictures.sha256,
        size=size,
        generation={
            "sampler": ELSEWHERE_DRAWN,
            "guidance": ELSEWHERE_DRAWN,
            "nfe": None,
            "precision": "uint8",
            "generator": ELSEWHERE_DRAWN,
        },
        pictures=pictures,
    )


def found_in(pictures: Pictures, *, path: str) -> Draw:
    """Draws by looking up the pictures that are called like the requests, with or without the set's folder.

    Raises:
        UserError: from the draw, where a picture is missing.
    """
    numbers = {key: number for number, key in enumerate(pictures.keys())}

    def place(request: Request) -> int | None:
        return numbers.get(request.name, numbers.get(request.name.partition("/")[2]))

    def draw(requests: Sequence[Request]) -> Tensor:
        places = [place(request) for request in requests]
        if None in places:
            missing = requests[places.index(None)].name
            raise UserError(
                f"{path} has no picture {missing!r} among its {len(numbers)}: name the files by the list "
                f"that list_prompts=<file.csv> writes, or take protocol=pictures, which needs no captions"
            )
        return torch.stack([pictures.image(number) for number in places if number is not None])

    return draw


def own_judges(bundle: Bundle, *, device: torch.device) -> Observers:
    """The bundle's own CLIP as a judge, where it carries both of its towers."""
    if not {"image_encoder", "text_encoder"} <= {*bundle.names}:
        return Observers(pictures={})
    images, texts = (bundle.network(name).to(device) for name in ("image_encoder", "text_encoder"))
    tokenizer = bundle.tokenizer()
    judge = OwnClip(
        images,
        dims=images.projection.out_features,
        size=images.image_size,
        sha256=bundle.config["parts"]["image_encoder"]["sha256"],
        device=device,
    )

    def read(prompts: Sequence[str]) -> Tensor:
        return texts(tokenizer.encode(prompts).to(device)).pooled

    return Observers(pictures={OWN_CLIP: judge}, texts={f"{OWN_CLIP}_text": read})
