"""Measures a bundle: `python -m ldm.evaluate bundle=<folder> data.root=<folder> out=<new folder>`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ldm.config import build, entry, plain

if TYPE_CHECKING:
    from ldm.checkpoints.bundle import Bundle
    from ldm.evaluation.measure import Evaluator
    from ldm.pipeline import TextToImage


@entry("evaluate")
def main(config: DictConfig) -> None:
    """Generates, measures, and writes results.json, report.md and the figures: all of them or nothing."""
    import torch

    from ldm.checkpoints.bundle import Bundle
    from ldm.checkpoints.pipeline import open_pipeline
    from ldm.checkpoints.provenance import config_hash
    from ldm.evaluation.measure import reconstruct
    from ldm.evaluation.report import write_report
    from ldm.evaluation.results import Subject, new_folder, results, values

    started = time.perf_counter()
    bundle = Bundle.open(config.bundle)
    options = with_sampling(plain(config), bundle)
    with new_folder(Path(config.out)) as folder:
        pipeline = open_pipeline(
            bundle,
            sampling=build(options["sampler"]),
            guidance=build(options["guidance"]),
            precision=getattr(torch, config.precision),
        )
        for part in (pipeline.net, pipeline.codec):
            part.to(choose_device(config.device))
        evaluator = prepare(bundle, options, pipeline)
        protocol = evaluator.protocol
        sets = [evaluator.measure(pipeline, caption_set) for caption_set in protocol.sets]
        document = results(
            protocol=protocol,
            subject=Subject(
                path=str(bundle.path), sha256=bundle.sha256, origin=bundle.config.get("origin", {})
            ),
            sets=sets,
            autoencoder=reconstruct(pipeline.codec, evaluator.gallery.splits[protocol.held_out]),
            config_hash=config_hash(plain(config)),
            seconds=time.perf_counter() - started,
            device=pipeline.codec.device,
        )
        shown = {each.name: each.shown for each in sets}
        write_report(folder, document, shown=shown, curves=bundle.path.parent / "metrics.jsonl")
    for name, value in values(document).items():
        print(f"{name:55} {value:.4g}")
    print(f"report: {Path(config.out) / 'report.md'}")


def with_sampling(config: dict[str, Any], bundle: "Bundle") -> dict[str, Any]:
    """The config with the nodes that will be used: sampler and guidance of the command or of the bundle.

    Raises:
        ValueError: a bundle that can't draw, or a scale for a guidance that has none.
    """
    from ldm.checkpoints.pipeline import with_scale

    if "backbone" not in bundle.names:
        raise ValueError(f"bundle {bundle.path} can't be measured, it holds no denoiser but {', '.join(bundle.names)}")
    sampler, guidance = (config.get(name) or bundle.config[name] for name in ("sampler", "guidance"))
    if config["steps"] is not None:
        sampler = sampler | {"steps": config["steps"]}
    if config["scale"] is not None:
        guidance = with_scale(guidance, config["scale"])
    return config | {"sampler": sampler, "guidance": guidance}


def prepare(bundle: "Bundle", config: dict[str, Any], pipeline: "TextToImage") -> "Evaluator":
    """The evaluator of a protocol: real pictures looked at, networks and measures ready."""
    from functools import partial

    from ldm.data.pictures import PictureDataset
    from ldm.evaluation.gallery import Gallery, observers_of
    from ldm.evaluation.measure import Evaluator, round_trip
    from ldm.evaluation.protocol import Protocol, describe

    spec = config["protocol"]
    pictures = partial(PictureDataset, config["data"]["root"], size=pipeline.size)
    splits = {name: pictures(split=name) for name in spec["splits"]}
    if spec["held_out"] not in splits:
        raise ValueError(
            f"protocol.held_out={spec['held_out']} is not one of protocol.splits: {', '.join(splits)}"
        )
    extractor = build(spec["extractor"]).to(pipeline.codec.device)
    observers = observers_of(bundle, pipeline.codec, extractor)
    return Evaluator(
        protocol=Protocol.of(
            {key: value for key, value in spec.items() if key != "extractor"},
            sampler=describe(config["sampler"]),
            guidance=describe(config["guidance"]),
            precision=config["precision"],
            size=pipeline.size,
            data=splits[spec["held_out"]].index.sha256,
            features=extractor.identity,
        ),
        metrics=build(config["metric"]),
        gallery=Gallery(splits, observers=observers),
        observers=observers,
        round_trip=partial(round_trip, pipeline.codec),
        batch_size=config["batch_size"],
        show=config["show"],
    )


def choose_device(name: str) -> str:
    """`auto` is the GPU where there is one.

    Raises:
        ValueError: an unknown name, or a GPU that isn't there.
    """
    import torch

    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device={name} is unknown or not there: write device=auto or device=cpu")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
