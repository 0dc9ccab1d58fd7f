"""A bundle as what is measured: its generator's pictures, its own CLIP as a judge of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, find
from ldm.checkpoints.run import Run
from ldm.evaluation.feature_pass import Features, Observers, generate_with
from ldm.evaluation.pictures import Subject
from ldm.evaluation.protocol import describe
from ldm.generators.denoiser_writer import bundle_of_state
from ldm.generators.generator import Opened, open_generator
from ldm.metrics.features import OWN_CLIP, FeatureIdentity, resize_pictures

OPTIONS = ("sampler", "guidance", "grid", "steps", "scale", "precision")  # of a generator


@contextmanager
def open_bundle(options: Mapping[str, Any], *, device: torch.device) -> Iterator[Subject]:
    """The bundle of a resolved config, or that of the EMA length that `ema_length` asks for, on a device.

    Raises UserError: it isn't there, can't be read, or lacks an option.
    """
    with TemporaryDirectory() as folder:
        path, length = options["bundle"], options["ema_length"]
        if length is not None:
            path = bundle_of_length(path, Path(folder) / "bundle", length=length)
        chosen = {name: options.get(name) for name in OPTIONS} | options.get("options", {})
        opened = open_generator(Bundle.open(path), **chosen).to(device)
        yield bundle_subject(opened, device=device, batch_size=options["batch_size"])


def bundle_of_length(bundle: str, out: Path, *, length: float) -> Path:
    """Writes a run's newest bundle, named as in `Bundle.open`, with an average of another length.

    Raises BundleError where there is no bundle. Raises UserError where it lies in no run with a whole
    checkpoint, or no such average can be made.
    """
    found = find(Path(bundle))
    if (state := Run(path=found.parent).state()) is None:
        raise UserError(
            f"ema_length={length} needs the run that bundle {found} came from, and its newest checkpoint"
        )
    return bundle_of_state(state, out, length=length)


def bundle_subject(opened: Opened, *, device: torch.device, batch_size: int) -> Subject:
    """The pictures of an opened bundle's generator, `batch_size` together; its judges look on the device."""
    generator, bundle, settings = opened.generator, opened.bundle, opened.generator.settings()
    generation = {
        name: describe(value) if isinstance(value, Mapping) and "_target_" in value else value
        for name, value in by_content(settings).items()
    }
    return Subject(
        kind="bundle",
        generate=generate_with(generator),
        path=str(bundle.path),
        sha256=bundle.sha256,
        origin=bundle.config.get("origin", {}),
        size=generator.size,
        files=files_of(settings),
        params=generator.num_parameters,
        generation=generation | {"nfe": generator.nfe},
        batch_size=batch_size,
        judges=own_judges(bundle, device=device),
        tokenizer=generator.tokenizer,
        round_trip=generator.reconstruct,
    )


def own_judges(bundle: Bundle, *, device: torch.device) -> Observers:
    """The bundle's own CLIP as a judge, where it carries both of its towers."""
    if not {"image_encoder", "text_encoder"} <= {*bundle.names}:
        return Observers()
    images, (texts, tokenizer) = bundle.network("image_encoder").to(device), bundle.texts()
    texts, sha256 = texts.to(device), bundle.config["parts"]["image_encoder"]["sha256"]
    return Observers(
        pictures={OWN_CLIP: OwnClip(images, sha256=sha256)},
        texts={f"{OWN_CLIP}_text": lambda prompts: texts(tokenizer.encode(prompts).to(device)).pooled},
    )


class OwnClip:
    """The vision tower of the model's own CLIP as a feature extractor; `sha256` is that of its weights."""

    def __init__(self, encoder: nn.Module, *, sha256: str) -> None:
        self.encoder, self.dims = encoder, {f"{OWN_CLIP}_image": encoder.projection.out_features}
        size = encoder.image_size
        self.identity = FeatureIdentity(name=OWN_CLIP, sha256=sha256, size=size, resize="bicubic")

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        device = next(self.encoder.parameters()).device
        resized = resize_pictures(images.to(device), size=self.identity.size, mode="bicubic")
        return {f"{OWN_CLIP}_image": self.encoder(resized / 127.5 - 1)}  # it takes pictures in [-1, 1]


def files_of(settings: Mapping[str, Any], *, within: str = "") -> dict[str, Mapping[str, str]]:
    """The files that settings name, {path: ..., sha256: ...} by dotted key."""
    found: dict[str, Mapping[str, str]] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            key = f"{within}{name}"
            found |= {key: value} if _is_file(value) else files_of(value, within=f"{key}.")
    return found


def by_content(value: Any) -> Any:
    """Settings with the sha256 of each file in the place of its path."""
    if not isinstance(value, Mapping):
        return value
    return value["sha256"] if _is_file(value) else {key: by_content(each) for key, each in value.items()}


def _is_file(value: Mapping[str, Any]) -> bool:
    return value.keys() == {"path", "sha256"}
