"""A training state's averaged denoiser as a bundle: an early one is the weak network of autoguidance.

A run keeps its newest states alone, as many as `callbacks.saving.keep` says: raise it to have early ones.
"""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ldm.checkpoints.bundle import Bundle, Part, write_bundle
from ldm.checkpoints.run import RECORD, Run
from ldm.checkpoints.store import STATE, is_whole, step_of

AVERAGE = "EMA"  # the callback under whose name a state holds the averaged weights


def bundle_of_state(state: Path, out: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Writes the bundle that the run would have left had it ended at this state.

    Autoencoder, text encoder and tokenizer come from the run's own bundle if it has one, else from those
    that it was trained beside.

    Args:
        state: `<run>/checkpoints/step=<step>`.
        out: the folder to make.
        dtype: of the stored weights.

    Raises:
        ValueError: no whole state of a denoiser's training, or one without averaged weights.
        FileExistsError: `out` is there already.
    """
    state = state.parent if state.name == STATE else state
    if not is_whole(state):
        raise ValueError(f"state={state} is no whole training state: name one of <run>/checkpoints/step=...")
    run = Run(path=state.parent.parent)
    config = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    if not {"backbone", "codec"} <= config.keys():
        raise ValueError(f"state={state} is of {config['name']}, which trains no denoiser")
    pictures, texts = codec_bundles(run, config)
    origins = {"autoencoder": pictures.entry("origin"), "text_encoder": texts.entry("origin")}
    names = [name for name in ("text_encoder", "image_encoder") if name in texts.names]
    parts = {"backbone": Part(spec=config["backbone"], state=averaged_weights(state))}
    parts["autoencoder"] = pictures.part("autoencoder")
    parts |= {name: texts.part(name) for name in names}
    settings = {
        "size": config["data"]["size"],
        "latents": pictures.entry("latents"),
        **{name: config[name] for name in ("process", "sampler", "guidance")},
        "origin": {"experiment": config["name"], "step": step_of(state)} | recorded(run),
        "codec_origin": pictures.entry("codec_origin") if run.finished else origins,
    }
    return write_bundle(out, parts=parts, tokenizer=texts.tokenizer(), settings=settings, dtype=dtype)


def averaged_weights(state: Path) -> dict[str, Tensor]:
    """The averaged network of a state, by name of its weights.

    Raises:
        ValueError: the state is in shards, or its training kept no average.
    """
    if (state / STATE).is_dir():
        raise ValueError(
            f"state={state} lies in shards: go on from it with trainer.strategy.save_shards=false, and take"
            " the next state"
        )
    held = torch.load(state / STATE, weights_only=True, map_location="cpu", mmap=True)
    if AVERAGE not in held.get("callbacks", {}):
        raise ValueError(f"state={state} holds no averaged weights: train with callbacks.ema")
    return held["callbacks"][AVERAGE]["net"]


def codec_bundles(run: Run, config: dict[str, Any]) -> tuple[Bundle, Bundle]:
    """Where a run's autoencoder and text encoder lie."""
    if run.finished:
        own = Bundle.open(run.path / "bundle")
        return own, own
    return Bundle.open(config["codec"]["autoencoder"]), Bundle.open(config["codec"]["text_encoder"])


def recorded(run: Run) -> dict[str, Any]:
    """What a run's record tells of its code and config."""
    record = json.loads((run.path / RECORD).read_text(encoding="utf-8"))
    return {name: record.get(name) for name in ("config_hash", "commit", "dirty")}
