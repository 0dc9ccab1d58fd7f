"""A training state's averaged denoiser as a bundle: an early one is the weak network of autoguidance.

Its average is the one that was kept, or of any length if the training wrote what `power_average.py` reads.

A run keeps its newest states alone, as many as `callbacks.saving.keep` says: raise it to have early ones.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, Part, find
from ldm.checkpoints.loading import read_state
from ldm.checkpoints.power_average import Averages, Profile
from ldm.checkpoints.run import RECORD, Run
from ldm.checkpoints.training_state import STATE, is_whole, step_of
from ldm.generators.diffusion_bundle import CodecBundles, write_denoiser
from ldm.io.reading import read_json, read_yaml

AVERAGE = "EMA"  # the callback under whose name a state holds the averaged weights


def bundle_of_state(
    state: Path, out: Path, *, length: float | None = None, dtype: torch.dtype = torch.float16
) -> Path:
    """Writes the bundle that the run would have left had it ended at this state.

    Autoencoder, text encoder and tokenizer come from the run's own bundle if it has one, else from those
    that it was trained beside.

    Args:
        state: `<run>/checkpoints/step=<step>`.
        out: the folder to make.
        length: of the average, put together of what `callbacks.averages` wrote; null takes the state's own.
        dtype: of the stored weights.

    Raises:
        UserError: no whole state of a denoiser's training, or no averaged weights to be had.
        NameTaken: `out` is there already.
    """
    state = state.parent if state.name == STATE else state
    if not is_whole(state):
        raise UserError(f"state={state} is no whole training state: name one of <run>/checkpoints/step=...")
    run = Run(path=state.parent.parent)
    config = read_yaml(run.path / "config.yaml")
    stage = config.get("model", {}).get("stage", config)  # every config has a backbone, which not all train
    if not {"process", "codec"} <= stage.keys():
        raise UserError(f"state={state} is of {config['name']}, which trains no denoiser")
    own = Bundle.open(run.path) if run.finished else None
    codec = CodecBundles(own, own) if own else CodecBundles.named(config)
    weights, told = averaged_weights(state), {"experiment": config["name"], "step": step_of(state)}
    if length is not None:
        weights |= Averages(run.path / "averages").average(Profile(step_of(state), length))
        told |= {"ema_length": length}
    return write_denoiser(
        out,
        Part(spec=config["backbone"], state=weights),
        codec,
        config=config,
        size=config["data"]["size"],
        origin=told | recorded(run),
        codec_origin=own.entry("codec_origin") if own else codec.origins,
        dtype=dtype,
    )


def bundle_of_length(bundle: str, out: Path, *, length: float) -> Path:
    """Writes a run's newest bundle with an average of another length.

    Args:
        bundle: as in `Bundle.open`.

    Raises:
        BundleError: there is no bundle.
        UserError: it lies in no run with a whole state, or no such average can be made.
    """
    found = find(Path(bundle))
    state = Run(path=found.parent).state()
    if state is None:
        raise UserError(
            f"ema_length={length} needs the run that bundle {found} came from, and its newest state"
        )
    return bundle_of_state(state, out, length=length)


def averaged_weights(state: Path) -> dict[str, Tensor]:
    """The averaged network of a state, by name of its weights.

    Raises:
        UserError: the state is in shards or can't be read, or its training kept no average.
    """
    if (state / STATE).is_dir():
        raise UserError(
            f"state={state} lies in shards: go on from it with trainer.strategy.save_shards=false, and take"
            " the next state"
        )
    try:
        held = read_state(state / STATE)
    except UserError as error:
        raise UserError(f"state={error}: take another") from error
    if AVERAGE not in held.get("callbacks", {}):
        raise UserError(f"state={state} holds no averaged weights: train with callbacks.ema")
    return held["callbacks"][AVERAGE]["net"]


def recorded(run: Run) -> dict[str, Any]:
    """What a run's record tells of its code and config."""
    record = read_json(run.path / RECORD)
    return {name: record.get(name) for name in ("config_hash", "commit", "dirty")}
