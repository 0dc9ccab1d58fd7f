"""Weights in and out: `python -m ldm.export from=<weights> out=<bundle>`, or the other way with `to=`.

`state=<run>/checkpoints/step=...` makes a bundle of an unfinished training.
"""

import os
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from ldm import UserError
from ldm.config import build, entry, overrides, plain

CHOICES = {
    "to": (None, "diffusers", "safetensors", "onnx"),
    "precision": ("float32", "float16", "bfloat16"),
    "declared": ("take", "ignore"),
    "weights": ("last", "ema"),
}
ONNX = ("onnx", "onnxscript")  # packages


@entry("export")
def main(config: DictConfig) -> None:
    """Makes a bundle of foreign weights or of a checkpoint, or exports a bundle; whole or nothing."""
    check_options(config)
    if config.state is not None:
        bundle_state(config)
    elif config["from"] is not None:
        import_foreign(config)
    else:
        export_bundle(config)


def bundle_state(config: DictConfig) -> None:
    """Writes the bundle of a checkpoint."""
    import torch

    from ldm.generators.denoiser_writer import bundle_of_state

    dtype = getattr(torch, config.precision)
    out = bundle_of_state(Path(config.state), Path(config.out), length=config.ema_length, dtype=dtype)
    print(f"bundle: {out}")


def import_foreign(config: DictConfig) -> None:
    """Writes the bundle of whatever `from` names."""
    import torch

    from ldm.exchange.compvis import Asked
    from ldm.exchange.diffusers import Architecture
    from ldm.exchange.importing import import_weights, locate
    from ldm.exchange.schedulers import STABLE_DIFFUSION_SAMPLING

    options = plain(config)
    channels = options["autoencoder"]["latent_channels"]
    architecture = Architecture(
        **{name: options[name] for name in ("backbone", "autoencoder", "text_encoder", "process", "size")},
        sampler=options.get("sampler") or STABLE_DIFFUSION_SAMPLING,
        latents={"shift": [0.0] * channels, "scale": [options["latent_scale"]] * channels},
    )
    source = locate(options["from"])
    asked = Asked(
        architecture=architecture,
        tokenizer=partial(build, config.tokenizer),
        clip=options["architecture"],
        text_state=options["text_state"],
        context_length=options["context_length"],
        averaged=config.weights == "ema",
        typed={re.split(r"[.=]", typed.lstrip("+~"))[0] for typed in overrides()},
        trusted=config.declared == "take",
    )
    imported = import_weights(source, asked)
    out = imported.write(Path(config.out), source, dtype=getattr(torch, config.precision))
    for note in imported.notes:
        print(note)
    if imported.left_out:
        print(f"left out: {', '.join(imported.left_out)}")
    print(f"bundle: {out} with {', '.join(imported.parts)}")


def export_bundle(config: DictConfig) -> None:
    """Writes a bundle in the form that `to` names."""
    import torch

    from ldm.checkpoints.bundle import Bundle
    from ldm.exchange.exporting import open_export, write_diffusers, write_single_file
    from ldm.exchange.onnx import write_onnx

    bundle, out = Bundle.open(config.bundle), Path(config.out)
    options = {name: plain(config).get(name) for name in ("sampler", "grid", "steps")}
    if config.to == "onnx":
        for name, share in write_onnx(bundle, out, options=options).items():
            missing = "not compared: pip install onnxruntime"
            print(f"{name}.onnx: {missing if share is None else f'{share:.0e} from its network'}")
    else:
        export = open_export(bundle, options)
        write = write_diffusers if config.to == "diffusers" else write_single_file
        write(export, out, dtype=getattr(torch, config.precision))
        for note in export.notes:
            print(note)
    print(f"{config.to}: {out}")


def check_options(config: DictConfig) -> None:
    """Refuses options that exclude each other, miss something or overwrite, before anything heavy loads."""
    form = config.to
    if sum(config[name] is not None for name in ("from", "state", "to")) != 1:
        raise UserError(
            "write from=<weights> to make a bundle, or to=diffusers to export one, "
            "or state=<state>: one of them"
        )
    for name, known in CHOICES.items():
        if config[name] not in known:
            raise UserError(
                f"{name}={config[name]} is unknown: write one of {', '.join(filter(None, known))}"
            )
    length = config.ema_length
    if length is not None and (config.state is None or not isinstance(length, int | float)):
        raise UserError(f"ema_length={length} must be a number, and goes with state=<state>")
    missing = [name for name in ONNX if form == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"to=onnx needs {' and '.join(missing)}: pip install {' '.join(missing)} onnxruntime")
    if form == "onnx" and config.precision != "float32":
        raise UserError(f"precision={config.precision} is not for to=onnx, which is float32: leave it out")
    if config.out is None:
        raise UserError("out is missing: name what is to be made with out=<folder>")
    if os.path.lexists(config.out):
        raise UserError(f"out={config.out} exists already: name another with out=<folder>, or remove it")
    if form == "safetensors" and not str(config.out).endswith(".safetensors"):
        raise UserError(f"out={config.out} is to be one file: name it out={config.out}.safetensors")


if __name__ == "__main__":
    main()
