"""Writing a denoiser's bundle: as its training ends, or from a checkpoint with any average of its weights.

An early checkpoint makes the weak network of autoguidance. A run keeps its newest ones alone, as many as
`callbacks.saving.keep` says: raise it to have early ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, Part
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.checkpoints.power_average import Averages, Profile
from ldm.checkpoints.run import Run
from ldm.checkpoints.training_state import STATE, is_whole, read_state, step_of
from ldm.io.reading import read_yaml

AVERAGE = "EMA"  # the callback under whose name a checkpoint holds the averaged weights


class CodecBundles(NamedTuple):
    """Where the frozen parts lie."""

    pictures: Bundle  # holds the autoencoder
    texts: Bundle  # holds text encoder, tokenizer, and perhaps the image encoder that was trained with them

    @classmethod
    def named(cls, config: Mapping[str, Any]) -> "CodecBundles":
        """The bundles that a training's config names under `codec`."""
        return cls(*(Bundle.open(config["codec"][name]) for name in ("autoencoder", "text_encoder")))

    @property
    def origins(self) -> dict[str, Any]:
        """The records of their trainings, by part."""
        return {"autoencoder": self.pictures.entry("origin"), "text_encoder": self.texts.entry("origin")}


def write_denoiser(
    path: Path,
    backbone: Part,
    codec: CodecBundles,
    *,
    config: Mapping[str, Any],
    size: int,
    origin: Mapping[str, Any],
    codec_origin: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Writes the bundle: the codec's parts as they came, and how to sample, by the config of the training.

    The origins are what is recorded of the trainings. Raises NameTaken where `path` is there already.
    """
    # the image encoder generates nothing; evaluation judges pictures by it
    texts = [name for name in ("text_encoder", "image_encoder") if name in codec.texts.names]
    parts = {"backbone": backbone, "autoencoder": codec.pictures.part("autoencoder")}
    parts |= {name: codec.texts.part(name) for name in texts}
    settings = {
        "size": size,
        "latents": codec.pictures.entry("latents"),
        **{name: config[name] for name in ("process", "sampler", "guidance")},
        "origin": dict(origin),
        "codec_origin": dict(codec_origin),
    }
    return write_bundle(path, parts=parts, tokenizer=codec.texts.tokenizer(), settings=settings, dtype=dtype)


def bundle_of_state(
    state: Path, out: Path, *, length: float | None = None, dtype: torch.dtype = torch.float16
) -> Path:
    """Writes the bundle that the run would have left had it ended at this checkpoint.

    Autoencoder, text encoder and tokenizer come from its bundle, else from those that its config names.

    Args:
        state: `<run>/checkpoints/step=<step>`.
        length: of the average, put together from what `callbacks.averages` wrote; None takes the
            checkpoint's own.

    Raises UserError where `state` is no whole checkpoint of a denoiser's training or holds no average.
    Raises NameTaken where `out` is there already.
    """
    # the file inside is accepted, too: shells complete it
    state = state.parent if state.name == STATE else state
    if not is_whole(state):
        raise UserError(f"state={state} is no whole checkpoint: name one of <run>/checkpoints/step=...")
    run = Run(path=state.parent.parent)
    config = read_yaml(run.path / "config.yaml")
    stage = config.get("model", {}).get("stage", config)  # every config has a backbone, which not all train
    if not {"process", "codec"} <= stage.keys():
        raise UserError(f"state={state} is of {config['name']}, which trains no denoiser")
    # a finished run holds its codec itself: the bundles that its config names may be gone
    own = Bundle.open(run.path) if run.finished else None
    codec = CodecBundles(own, own) if own else CodecBundles.named(config)
    weights, origin = averaged_weights(state), {"experiment": config["name"], "step": step_of(state)}
    if length is not None:
        weights |= Averages(run.path / "averages").average(Profile(step_of(state), length))
        origin |= {"ema_length": length}
    record = run.record()
    return write_denoiser(
        out,
        Part(spec=config["backbone"], state=weights),
        codec,
        config=config,
        size=config["data"]["size"],
        origin=origin | {name: record.get(name) for name in ("config_hash", "commit", "dirty")},
        codec_origin=own.entry("codec_origin") if own else codec.origins,
        dtype=dtype,
    )


def averaged_weights(state: Path) -> dict[str, Tensor]:
    """The averaged network of a checkpoint, by name of its weights.

    Raises UserError where the checkpoint is sharded or can't be read, or its training kept no average.
    """
    if (state / STATE).is_dir():
        raise UserError(
            f"state={state} is sharded: resume with trainer.strategy.save_shards=false, take the next one"
        )
    try:
        held = read_state(state / STATE)
    except UserError as error:
        raise UserError(f"state={error}: take another") from error
    if AVERAGE not in held.get("callbacks", {}):
        raise UserError(f"state={state} holds no averaged weights: train with callbacks.ema")
    # the average and not the trained weights: it is what validation samples from and what a run exports
    weights: dict[str, Tensor] = held["callbacks"][AVERAGE]["net"]
    return weights
