"""Weights in and out: `python -m ldm.export from=<weights> out=<bundle>`, or the other way with `to=`."""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from ldm.config import build, entry, plain

FORMS = ("diffusers", "safetensors")
PRECISIONS = ("float32", "float16", "bfloat16")


@entry("export")
def main(config: DictConfig) -> None:
    """Makes a bundle of foreign weights, or a foreign folder or file of a bundle: whole or not at all."""
    check_options(config)
    if config["from"] is None:
        export_bundle(config)
    else:
        import_foreign(config)


def import_foreign(config: DictConfig) -> None:
    """Writes the bundle of whatever `from` names."""
    import torch

    from ldm.exchange.architecture import Architecture
    from ldm.exchange.hub import locate
    from ldm.exchange.importing import import_weights
    from ldm.exchange.schedulers import STABLE_DIFFUSION_SAMPLING

    options = plain(config)
    channels = options["autoencoder"]["latent_channels"]
    architecture = Architecture(
        **{name: options[name] for name in ("backbone", "autoencoder", "text_encoder", "process")},
        sampler=options.get("sampler") or STABLE_DIFFUSION_SAMPLING,
        latents={"shift": [0.0] * channels, "scale": [options["latent_scale"]] * channels},
        size=options["size"],
    )
    source = locate(options["from"])
    imported = import_weights(
        source,
        architecture=architecture,
        tokenizer=partial(build, config.tokenizer),
        clip=options["architecture"],
        text_state=options["text_state"],
    )
    out = imported.write(Path(config.out), source, dtype=getattr(torch, config.precision))
    if imported.left_out:
        print(f"left out: {', '.join(imported.left_out)}")
    print(f"bundle: {out} with {', '.join(imported.parts)}")


def export_bundle(config: DictConfig) -> None:
    """Writes a bundle in the form that `to` names."""
    import torch

    from ldm.checkpoints.bundle import Bundle
    from ldm.exchange.exporting import open_export, write_diffusers, write_single_file

    options = {name: plain(config).get(name) for name in ("sampler", "steps")}
    export = open_export(Bundle.open(config.bundle), options)
    write = write_diffusers if config.to == "diffusers" else write_single_file
    out = write(export, Path(config.out), dtype=getattr(torch, config.precision))
    for note in export.notes:
        print(note)
    print(f"{config.to}: {out}")


def check_options(config: DictConfig) -> None:
    """What can be refused before anything heavy loads.

    Raises:
        ValueError: both directions or none, an unknown form, or an `out` that is missing or there already.
    """
    source, form = config["from"], config.to
    if (source is None) == (form is None):
        raise ValueError("write from=<weights> to make a bundle, or to=diffusers to export one: one of them")
    if form is not None and form not in FORMS:
        raise ValueError(f"to={form} is unknown: write {' or '.join(f'to={name}' for name in FORMS)}")
    if config.precision not in PRECISIONS:
        raise ValueError(f"precision={config.precision} is unknown: write one of {', '.join(PRECISIONS)}")
    if config.out is None:
        raise ValueError("out is missing: name what is to be made with out=<folder>")
    if Path(config.out).exists():
        raise ValueError(f"out={config.out} exists already: name another with out=<folder>, or remove it")
    if form == "safetensors" and not str(config.out).endswith(".safetensors"):
        raise ValueError(f"out={config.out} is to be one file: name it out={config.out}.safetensors")


if __name__ == "__main__":
    main()
