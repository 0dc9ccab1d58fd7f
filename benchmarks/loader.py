"""Loading pictures, ours against the usual ways in turns: `python -m benchmarks.loader [key=value ...]`.

Every way makes batches of 32 centre crops (bicubic, antialiased, uint8) in one thread from the same JPEGs of
500 x 375 pixels and quality 90. The last columns compare ours with the exact picture: everything decoded by
PIL, then PIL's resize of the crop. Take the numbers on an idle machine.
"""

import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image, ImageOps
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image, read_file
from torchvision.transforms import v2

from benchmarks.problem_sizes import SIZES
from benchmarks.timing import in_turns
from data_prep.command_line import command_line, option
from data_prep.making import write_shards
from ldm.data.datamodule import PictureData
from ldm.data.decode import centre
from ldm.data.index import ShardIndex
from ldm.data.shards import Sample

HEIGHT, WIDTH, QUALITY = 375, 500, 90
BATCH = 32
OURS, FASTEST = "ours", "torchvision decode_jpeg (deprecated) + tensor resize"
Pass = Callable[[], object]


@dataclass(kw_only=True)
class Options:
    """Where pictures are from, how many, and how often each way loads them."""

    source: str = option("", "Folder of pictures, at any depth; without it, noise like photographs.")
    pictures: int = option(300, "Pictures loaded a round.")
    rounds: int = option(5, "Rounds of each way.")
    shape: str = option("tiny,base", "Whose pictures are made: tiny, base or sd, or several with commas.")


def photographs(source: Path) -> Iterator[Image.Image]:
    """The pictures of a folder, cropped and resized to one size."""
    for path in sorted(
        path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    ):
        with Image.open(path) as picture:
            yield ImageOps.fit(picture.convert("RGB"), (WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def made() -> Iterator[Image.Image]:
    """Grey noise with a little of each colour, spread so that its JPEGs are as large as photographs are."""
    draw = np.random.default_rng(0)
    down, right = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    amplitude = (np.hypot(down, right) + 1 / WIDTH) ** -1.6
    while True:
        noise = np.fft.rfft2(draw.standard_normal((4, HEIGHT, WIDTH))) * amplitude
        layers = np.fft.irfft2(noise, s=(HEIGHT, WIDTH))
        layers /= layers.std(axis=(1, 2), keepdims=True)
        values = 127 + 50 * (layers[:1] + 0.2 * layers[1:])
        yield Image.fromarray(values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


def prepare(pictures: Iterable[Image.Image], root: Path) -> None:
    """The same JPEGs as files for ImageFolder and as shards."""
    (root / "files" / "all").mkdir(parents=True)
    samples = []
    for number, picture in enumerate(pictures):
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=QUALITY)
        (root / "files" / "all" / f"{number:06d}.jpg").write_bytes(buffer.getvalue())
        record = {"key": f"{number:06d}", "texts": [f"picture {number}"], "comment_nos": [0]}
        samples.append(Sample(image=buffer.getvalue(), extension="jpg", **record))
    shards = tuple(write_shards(samples, root=root, split="train"))
    ShardIndex(root=root, name="benchmark", shards=shards).save()


def resize(size: int) -> v2.Transform:
    """What the usual ways do to a decoded picture."""
    bicubic = v2.InterpolationMode.BICUBIC
    return v2.Compose([v2.Resize(size, interpolation=bicubic, antialias=True), v2.CenterCrop(size)])


def ours(root: Path, *, size: int, batches: int) -> Pass:
    """Our data module, as a training uses it."""
    data = PictureData(root=str(root), size=size, batch_size=BATCH, val_split="train")
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    data.trainer = Trainer(accelerator="cpu", devices=1, max_steps=10**6, **options)
    stream = iter(data.train_dataloader())
    return lambda: [next(stream) for _ in range(batches)]


def usual(root: Path, *, size: int, batches: int) -> dict[str, Pass]:
    """Passes over the same pictures by the usual ways; each starts anew and makes as many batches."""
    import datasets  # a second that ours and the other benchmarks do without

    transform = v2.Compose([resize(size), v2.PILToTensor()])
    pil = ImageFolder(root / "files", transform=transform)
    raw = ImageFolder(
        root / "files", transform=resize(size), loader=lambda path: decode_image(read_file(path))
    )
    shards = sorted(str(path) for path in root.glob("train-*.tar"))
    tars = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "json")
    tars = tars.map_tuple(transform, lambda record: record["texts"][0])
    table = datasets.Dataset.from_dict({"image": [path for path, _ in pil.samples]})
    table = table.cast_column("image", datasets.Image()).with_transform(
        lambda rows: {"image": [transform(each.convert("RGB")) for each in rows["image"]]}
    )
    sources: dict[str, Any] = {
        "torchvision ImageFolder + PIL": pil,
        "webdataset + PIL": tars,
        "datasets + PIL": table,
        FASTEST: raw,
    }
    loaders = {name: DataLoader(source, batch_size=BATCH) for name, source in sources.items()}
    return {
        name: lambda loader=loader: list(islice(loader, batches))  # type: ignore[misc]
        for name, loader in loaders.items()
    }


def exact(data: bytes, size: int) -> np.ndarray:
    """All of a picture decoded by PIL, then PIL's resize of its centre: h w 3."""
    with Image.open(io.BytesIO(data)) as picture:
        box = centre(picture.height, picture.width, aspect=1.0)
        part = picture.convert("RGB").crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def difference(root: Path, size: int) -> str:
    """Ours against the exact pictures: peak signal to noise, and the mean colour."""
    pictures = PictureData(root=str(root), size=size, batch_size=BATCH, val_split="train").train
    errors, shifts = [], []
    for number in range(len(pictures)):
        ours = pictures.image(number).permute(1, 2, 0).numpy()
        error = ours - exact(pictures.reader.image(number), size)
        errors.append((error**2).mean())
        shifts.append(np.abs(error.mean(axis=(0, 1))).max())
    psnr = 10 * np.log10(255**2 / np.maximum(errors, 1e-3))
    return f"{psnr.mean():.1f} | {psnr.min():.1f} | {max(shifts):.2f}"


def main(options: Options) -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pictures = options.pictures // BATCH * BATCH
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        root = Path(folder)
        prepare(islice(photographs(Path(options.source)) if options.source else made(), pictures), root)
        files = list((root / "files" / "all").iterdir())
        count, size = len(files) // BATCH * BATCH, sum(path.stat().st_size for path in files) / len(files)
        print(
            f"{count} JPEGs of {WIDTH} x {HEIGHT} and {size / 1000:.0f} kB; {options.rounds} rounds in turns"
        )
        print("| way | size | pictures/s (min - max) | ours is | PSNR mean | worst, dB | colour off by |")
        print("|---|---|---|---|---|---|---|")
        for shape in options.shape.split(","):
            table(root, size=SIZES[shape].pixels, batches=count // BATCH, rounds=options.rounds)


def table(root: Path, *, size: int, batches: int, rounds: int) -> None:
    """Prints the rows of one size."""
    passes = {OURS: ours(root, size=size, batches=batches)} | usual(root, size=size, batches=batches)
    seconds = in_turns(passes, rounds=rounds)
    measured = {name: [batches * BATCH / each for each in own] for name, own in seconds.items()}
    best = max(median(own) for name, own in measured.items() if name not in (OURS, FASTEST))
    for name, own in measured.items():
        middle = median(own)
        ratio = median(measured[OURS]) / (best if name == OURS else middle)
        ratio_text = f"**{ratio:.2f} x the best with PIL**" if name == OURS else f"{ratio:.2f} x"
        quality = difference(root, size) if name == OURS else " | | "
        print(
            f"| {name} | {size} | {middle:.0f} ({min(own):.0f} - {max(own):.0f}) | {ratio_text} | {quality} |"
        )


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
