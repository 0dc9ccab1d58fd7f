"""Measures a bundle: `python -m ldm.evaluate bundle=<folder> data.root=<folder> out=<new folder>`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ldm.config import build, entry, plain

if TYPE_CHECKING:
    import torch


@entry("evaluate")
def main(config: DictConfig) -> None:
    """Generates, measures, and writes results.json, report.md and the figures: all of them or nothing."""
    check_options(config)
    from ldm.checkpoints.bundle import Bundle
    from ldm.checkpoints.pipeline import open_pipeline, sampling_nodes
    from ldm.checkpoints.provenance import config_hash
    from ldm.evaluation.measure import reconstruct
    from ldm.evaluation.opening import open_evaluator
    from ldm.evaluation.report import write_report
    from ldm.evaluation.results import Subject, new_folder, results, values

    started = time.perf_counter()
    bundle = Bundle.open(config.bundle)
    options = plain(config)
    nodes = sampling_nodes(bundle, options)
    with new_folder(Path(config.out)) as folder:
        device = choose_device(config.device)
        pipeline = open_pipeline(bundle, **nodes, precision=config.precision)
        for part in (pipeline.net, pipeline.codec):
            part.to(device)
        extractor = build(config.protocol.extractor).to(device)
        evaluator = open_evaluator(
            options | nodes, bundle, pipeline, extractor=extractor, metrics=build(config.metric)
        )
        sets = [evaluator.measure(pipeline, caption_set) for caption_set in evaluator.protocol.sets]
        held_out = evaluator.gallery.splits[evaluator.protocol.held_out]
        document = results(
            protocol=evaluator.protocol,
            subject=Subject(
                path=str(bundle.path), sha256=bundle.sha256, origin=bundle.config.get("origin", {})
            ),
            sets=sets,
            autoencoder=reconstruct(pipeline.codec, held_out),
            config_hash=config_hash(plain(config)),
            seconds=time.perf_counter() - started,
            device=device,
        )
        shown = {each.name: each.shown for each in sets}
        write_report(folder, document, shown=shown, curves=bundle.path.parent / "metrics.jsonl")
    for name, value in values(document).items():
        print(f"{name:55} {value:.4g}")
    print(f"report: {Path(config.out) / 'report.md'}")


def check_options(config: DictConfig) -> None:
    """What can be refused before anything heavy loads.

    Raises:
        ValueError: an option outside its range, or a folder that is there already.
    """
    if config.steps is not None and not isinstance(config.steps, int):
        raise ValueError(f"steps={config.steps} must be a whole number, or null for the bundle's")
    if config.scale is not None and not isinstance(config.scale, int | float):
        raise ValueError(f"scale={config.scale} must be a number, or null for the bundle's")
    if config.show < 1:
        raise ValueError(f"show={config.show} must be at least 1")
    if Path(config.out).exists():
        raise ValueError(
            f"out={config.out} exists already: name a new folder with out=<folder>, or remove it"
        )


def choose_device(name: str) -> "torch.device":
    """`auto` is the GPU where there is one.

    Raises:
        ValueError: an unknown name, or a GPU that isn't there.
    """
    import torch

    gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not gpu):
        raise ValueError(f"device={name} is unknown or not there: write device=auto or device=cpu")
    return torch.device("cuda" if gpu and name != "cpu" else "cpu")


if __name__ == "__main__":
    main()
