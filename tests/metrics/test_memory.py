"""What a picture costs in memory: nothing, whichever measure looks at it."""

import gc
import sys
import tracemalloc
from copy import deepcopy
from functools import partial
from itertools import accumulate

import numpy as np
import pytest
import scipy.stats  # noqa: F401 - before anything is counted: a measure would import it, and be charged for it
import torch
from torch.profiler import ProfilerActivity, profile

from ldm.evaluation.feature_pass import FeaturePass, Observers, parts_of
from ldm.evaluation.protocol import Request
from ldm.evaluation.reference_set import FeatureCache, ReferenceSet
from ldm.metrics import distances
from ldm.metrics.distances import Cmmd, FrechetRatio, KernelDistance, Mind
from ldm.metrics.diversity import CaptionDiversity, InceptionScore, PerceptualDiversity, VendiScore
from ldm.metrics.features import BothWays, FeatureIdentity, Pixels
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.mmap_tables import blocks
from ldm.metrics.neighbours import (
    ClippedDensityCoverage,
    CopiedShare,
    DensityCoverage,
    Memorisation,
    PrecisionRecall,
)
from ldm.metrics.picture_metric import GatheredFeatures, score
from ldm.metrics.retrieval import ClipScore, PictureRecall, RPrecision

# Blocks of fewer rows than usual, so that both counts of pictures fill more than two of them.
ROWS, FEW, MANY = 128, 420, 900
SIDE = 12  # pixels
DIMS = 192  # features of the network, as many as of small pixels both ways; of pixels there are more
TABLE = 4 * DIMS * (MANY - FEW)  # bytes of the features that MANY pictures have more, of one side
NET = "net_image"


class Projection:
    """Features that are random sums of a picture's pixels; texts have random ones."""

    def __init__(self):
        self.dims = {NET: DIMS}
        self.identity = FeatureIdentity(name="net", sha256="0" * 64, size=SIDE, resize="bicubic")
        self.matrix = noise(0, 3 * SIDE**2, DIMS)

    def __call__(self, images):
        return {NET: (images.flatten(1) / 255) @ self.matrix}

    def read(self, texts):
        return torch.stack([noise(int(text), DIMS) for text in texts])


class Noise:
    """Random pictures by number."""

    sha256 = "1" * 64

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def image(self, number):
        return picture(number)

    def keys(self):
        return [str(number) for number in range(self.count)]

    def texts(self):
        return [[key] for key in self.keys()]


class Difference:
    """Mean absolute difference of two pictures."""

    name = "difference"

    def __call__(self, ours, theirs):
        return (ours - theirs).abs().mean(dim=(1, 2, 3))


class OneTable(GatheredFeatures):
    """A measure as none should be: it holds a whole table."""

    def __init__(self, hold):
        super().__init__(features=NET)
        self.hold = hold

    def compute(self):
        return {"mean": self.hold([*blocks(self.side("real").features)]).mean()}


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(seed):
    return (noise(seed, 3, SIDE, SIDE) * 60 + 128).clamp(0, 255).to(torch.uint8)


def draw(requests):
    return torch.stack([picture(request.seed) for request in requests])


def measures():
    return [
        FrechetDistance(features=NET, dims=DIMS),
        VendiScore(features=NET, dims=DIMS),
        ClipScore(clip="net"),
        InceptionScore(features=NET),
        KernelDistance(features=NET, subsets=10, subset_size=100),
        PrecisionRecall(features=NET),
        DensityCoverage(features=NET),
        ClippedDensityCoverage(features=NET),
        Mind(features=NET, projections=DIMS),
        FrechetRatio(features=NET),
        CopiedShare(features="pixels_both_ways"),
        Cmmd(features=NET),
        Memorisation(features=NET),
        PictureRecall(features=NET),
        RPrecision(clip="net"),
        CaptionDiversity(features=NET, dims=DIMS),
        PerceptualDiversity(distance=Difference()),
    ]


def most_bytes(action, *of):
    """The most that tensors, arrays and Python's objects of an action hold at once; and what it returns.

    Counted are the bytes that torch, numpy and Python ask for, not the pages that the system gives them, and
    no file that is mapped. Neither is seen what a C library takes for itself, nor a table that is written to.
    """
    gc.collect()
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = action(*of)
    objects = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    events = found.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(changes), default=0) + objects, result


def look(pictures, requests, folder):
    """All real pictures, and as many drawn ones, by their features."""
    net = Projection()
    pixels = {"pixels": Pixels(size=SIDE), "both": BothWays(of=Pixels(size=SIDE * 2 // 3))}
    observers = Observers(pictures={"net": net, **pixels}, texts={"net_text": net.read})
    cache = FeatureCache(folder=folder)
    gallery = ReferenceSet({"real": pictures}, observers=observers, cache=cache, progress=False)
    look = FeaturePass(observers=observers, batch_size=50)
    made, _ = look(draw, requests, wanted=observers.names)
    return gallery, made


def asked(count):
    """As many requests, which an evaluation holds from its start."""
    return [
        Request(prompt=str(number), seed=count + number, row=number, caption=number, name="")
        for number in range(count)
    ]


def pick(gallery, _):
    """Reads all real pictures by their numbers."""
    for _ in gallery.observed([*reversed(range(gallery.count))]):
        pass


def take(measure, gallery, made):
    """One measure."""
    if isinstance(measure, CaptionDiversity | PerceptualDiversity):
        made = made._replace(captions=made.captions // 2)
    return score({"it": measure}, real=gallery.observed(), generated=parts_of(made))


@pytest.fixture(scope="module")
def work_on_small_blocks():
    """Few rows of a table are in memory at once, wherever that number is used."""
    with pytest.MonkeyPatch.context() as patch:
        for module in [each for name, each in sys.modules.items() if name.startswith("ldm.")]:
            if hasattr(module, "ROWS_AT_ONCE"):
                patch.setattr(module, "ROWS_AT_ONCE", ROWS)
        patch.setattr(distances, "AT_ONCE", 256 * ROWS)
        yield


@pytest.fixture(scope="module")
def looked(work_on_small_blocks, tmp_path_factory):
    """For both counts of pictures: the bytes that the pass over them took, and its tables."""
    return {
        count: most_bytes(look, Noise(count), asked(count), tmp_path_factory.mktemp("features"))
        for count in (MANY, FEW)
    }


@pytest.fixture
def growth(looked, unchecked_shapes):
    """`growth(action)`: how many more bytes an action takes with MANY pictures."""

    def grown(action):
        many, few = (most_bytes(deepcopy(action), *tables)[0] for _, tables in looked.values())
        return many - few

    return grown


def test_memory_does_not_grow_with_the_number_of_pictures(looked, growth):
    """By less than one side's table: what there is are the numbers of the pictures."""
    tables = [
        table
        for _, (gallery, made) in looked.values()
        for table in (*gallery.features.values(), *made.features.values())
    ]
    unwritten = [table.clone() for table in tables]
    found = {"look": looked[MANY][0] - looked[FEW][0], "pick": growth(pick)}
    for measure in measures():
        found[type(measure).__name__] = growth(partial(take, measure))
    assert len(found) == 19
    assert {name: size for name, size in found.items() if size > 0.75 * TABLE} == {}
    assert all(map(torch.equal, tables, unwritten))


@pytest.mark.parametrize(
    "hold", [torch.cat, lambda parts: torch.as_tensor(np.concatenate(parts))], ids=["torch", "numpy"]
)
def test_a_table_that_a_measure_holds_is_seen(growth, hold):
    assert growth(partial(take, OneTable(hold))) > TABLE
