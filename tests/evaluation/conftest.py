import dataclasses
import io
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from data_prep.making import write_shards
from ldm.data.index import ShardIndex
from ldm.data.shards import PictureDataset, Sample
from ldm.evaluation.feature_pass import Observers
from ldm.evaluation.measure import Evaluator
from ldm.evaluation.protocol import CaptionSet, Protocol
from ldm.evaluation.reference_set import ReferenceSet
from ldm.metrics.diversity import CaptionDiversity
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.retrieval import ClipScore, PictureRecall

SIDE = 16


def encoded(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def sample(number):
    colour = (number * 9 % 256, number * 31 % 256, number * 57 % 256)
    return Sample(
        key=f"p{number:02d}",
        image=encoded(colour),
        extension="png",
        texts=[f"picture {number} of colour {colour}", f"{number}"],
        comment_nos=[0, 1],
    )


class Colours:
    """12 features of the mean colour, by angle far apart where the colours are."""

    dims = {"colours": 12}  # noqa: RUF012
    identity = FeatureIdentity(name="colours", sha256="f" * 64, size=SIDE, resize="bicubic")

    def __call__(self, images):
        mean = images.float().mean(dim=(2, 3))
        waves = [wave(mean / period) for period in (20, 50) for wave in (torch.cos, torch.sin)]
        return {"colours": torch.cat(waves, dim=1)}


OBSERVERS = Observers(pictures={"colours": Colours()})


@dataclass(frozen=True)
class PaintsFrom:
    """Paints the colour of the picture whose number the caption holds; if `errs`, another for odd seeds."""

    errs: bool = False

    def __call__(self, requests):
        prompts, seeds = [one.prompt for one in requests], [one.seed for one in requests]
        numbers = [int(prompt.split()[1] if " " in prompt else prompt) for prompt in prompts]
        painted = [(n + (40 if self.errs and s % 2 else 0)) % 64 for n, s in zip(numbers, seeds, strict=True)]
        rows = [torch.tensor([n * 9 % 256, n * 31 % 256, n * 57 % 256]) for n in painted]
        return torch.stack(rows).to(torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    shards = [
        *write_shards(map(sample, range(20)), root=root, split="train"),
        *write_shards(map(sample, range(20, 26)), root=root, split="val"),
    ]
    ShardIndex(root=root, name="colours", shards=tuple(shards)).save()
    return root


@pytest.fixture(scope="module")
def gallery(data_root):
    splits = {name: PictureDataset(str(data_root), split=name, size=SIDE) for name in ("train", "val")}
    return ReferenceSet(splits, observers=OBSERVERS, progress=False)


@pytest.fixture
def protocol(gallery):
    drawn = Protocol(
        name="tiny",
        sets=(
            CaptionSet(
                name="train",
                split="train",
                captions=8,
                metrics=("frechet", "nearest", "clip_score"),
                few=("frechet",),
            ),
            CaptionSet(name="heldout", split="val", captions=None, metrics=("nearest",)),
            CaptionSet(name="diversity", split="train", captions=3, samples=2, metrics=("diversity",)),
        ),
        caption_seed=0,
        seed_base=100,
        size=SIDE,
        data="d" * 64,
        splits=("train", "val"),
        held_out="val",
        generation={
            "sampler": "heun(steps=4)",
            "guidance": "cfg(scale=3.0)",
            "nfe": 16,
            "precision": "float32",
            "generator": "philox4x32-10",
        },
        resize="bicubic",
        reference="e" * 64,
        batch_size=3,
        features=(Colours.identity,),
    )
    sets = [each.identified(gallery.captions(each, seed=0)) for each in drawn.sets]
    return dataclasses.replace(drawn, sets=tuple(sets))


@pytest.fixture
def evaluator(protocol, gallery):
    return Evaluator(
        protocol=protocol,
        metrics={
            "frechet": FrechetDistance(features="colours", dims=12),
            "nearest": PictureRecall(features="colours"),
            "diversity": CaptionDiversity(features="colours", dims=12),
            "clip_score": ClipScore(clip="own_clip"),
        },
        reference_set=gallery,
        observers=OBSERVERS,
        captions={each.name: gallery.captions(each, seed=0) for each in protocol.sets},
        params=12_000_000,
        round_trip=lambda images: images // 2,
        show=2,
    )


@pytest.fixture
def observers():
    return OBSERVERS


@pytest.fixture
def save_pictures():
    """`save_pictures(folder, {name: colour}, side=...)`: PNG files of one colour each."""

    def save(folder, colours, *, side=SIDE):
        for name, colour in colours.items():
            path = folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), colour).save(path)
        return folder

    return save


@pytest.fixture
def paints():
    return PaintsFrom()


@pytest.fixture
def paints_with_errors():
    return PaintsFrom(errs=True)
