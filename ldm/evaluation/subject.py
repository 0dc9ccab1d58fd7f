"""What is measured: a bundle that draws pictures, a folder of anybody's pictures, or a split of real ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.pipeline import identified
from ldm.diffusion.guidance import apart
from ldm.evaluation.feature_pass import OWN_CLIP, Observers, OwnClip, text_reader
from ldm.evaluation.generation import Draw, Request, drawn_by
from ldm.evaluation.pictures import Pictures, fit
from ldm.evaluation.protocol import describe
from ldm.evaluation.reference_set import BATCH
from ldm.evaluation.round_trip import round_trip
from ldm.pipeline import TextToImage
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
        weak: path and sha256 of the bundle that guides it by its errors; null where there is none.
        params: of the denoiser; null where it isn't known.
        drawing: how its pictures come, for the protocol: its fields from `sampler` to `batch_size`.
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
    drawing: Mapping[str, Any]
    origin: Mapping[str, Any] = field(default_factory=dict)
    weak: Mapping[str, str] | None = None
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


def bundle_subject(
    bundle: Bundle, pipeline: TextToImage, nodes: Mapping[str, Any], *, precision: str, batch_size: int
) -> Subject:
    """A bundle, drawing with its pipeline.

    Args:
        nodes: the `sampler` and `guidance` that the pipeline was opened with.
        batch_size: pictures that it generates together.
    """
    guidance = identified(nodes["guidance"])
    return Subject(
        kind="bundle",
        draw=drawn_by(pipeline),
        path=str(bundle.path),
        sha256=bundle.sha256,
        origin=bundle.config.get("origin", {}),
        size=pipeline.size,
        weak={"path": nodes["guidance"]["weak"], "sha256": guidance["weak"]} if "weak" in guidance else None,
        params=sum(parameter.numel() for parameter in pipeline.net.parameters()),
        drawing={
            "sampler": describe(nodes["sampler"]),
            "guidance": describe(guidance),
            "nfe": network_evaluations(pipeline),
            "precision": precision,
            "generator": pipeline.noise.name,
            "batch_size": batch_size,
        },
        judges=own_judges(bundle, pipeline),
        tokenizer=pipeline.codec.tokenizer,
        round_trip=partial(round_trip, pipeline.codec),
    )


def picture_subject(pictures: Pictures, *, path: str, size: int) -> Subject:
    """Pictures that are there: each is found by the key of the picture that its caption belongs to."""
    return Subject(
        kind="pictures",
        draw=found_in(pictures, path=path),
        path=path,
        sha256=pictures.sha256,
        size=size,
        drawing={
            "sampler": ELSEWHERE_DRAWN,
            "guidance": ELSEWHERE_DRAWN,
            "nfe": None,
            "precision": "uint8",
            "generator": ELSEWHERE_DRAWN,
            "batch_size": BATCH,
            "seed_base": 0,
            "seeds": 1,
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


def own_judges(bundle: Bundle, pipeline: TextToImage) -> Observers:
    """The bundle's own CLIP as a judge, where it carries a vision tower: that and the codec's text tower."""
    if "image_encoder" not in bundle.names:
        return Observers(pictures={})
    encoder = bundle.network("image_encoder").to(pipeline.codec.device)
    judge = OwnClip(
        encoder,
        dims=encoder.projection.out_features,
        size=encoder.image_size,
        sha256=bundle.config["parts"]["image_encoder"]["sha256"],
        device=pipeline.codec.device,
    )
    return Observers(pictures={OWN_CLIP: judge}, texts={f"{OWN_CLIP}_text": text_reader(pipeline.codec)})


def network_evaluations(pipeline: TextToImage) -> int:
    """Evaluations of the network for a picture, both of guidance's counted, by a run on four numbers."""
    count = 0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros_like(x)

    guided = pipeline.guidance(denoise, apart(denoise, denoise))
    start = torch.zeros(1, 1, 2, 2)
    pipeline.sampling(guided, pipeline.process.schedule, start, noise=torch.zeros_like)
    return count
