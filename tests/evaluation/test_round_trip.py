import pytest
import torch

from ldm.evaluation.command import reconstruct
from ldm.evaluation.pictures import PictureFolder
from ldm.io.pictures import to_picture
from ldm.metrics.networks import EfficientNetLite0, efficientnet_lite0
from ldm.metrics.reconstruction import Reconstruction

SIDE = 32
NAMES = ["psnr", "ssim", "perceptual_efficientnet_lite0", "rfd_efficientnet_lite0"]


@pytest.fixture(scope="module")
def judge():
    distance = efficientnet_lite0(size=SIDE)
    return Reconstruction(extractor=EfficientNetLite0(size=SIDE), distances={distance.name: distance})


@pytest.fixture(scope="module")
def measured(judge, tmp_path_factory):
    """`measured(through)`: the autoencoder's rows by name."""
    path = tmp_path_factory.mktemp("noise")
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        noise = torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        to_picture(noise).save(path / f"p{number}.png")
    folder = PictureFolder(path)

    def measure(through):
        judge.reset()
        return {row.metric: row for row in reconstruct(through, folder, judge)}

    return measure


def test_a_round_trip_that_changes_nothing_is_no_distance_away_and_few_pictures_are_labelled(measured):
    rows = measured(lambda images: images)
    assert list(rows) == NAMES
    assert rows["ssim"].value == pytest.approx(1)
    assert rows["perceptual_efficientnet_lite0"].value == 0
    assert rows["rfd_efficientnet_lite0"].value == pytest.approx(0, abs=1e-6)
    assert {(row.set, row.images) for row in rows.values()} == {("autoencoder", 5)}
    labels = {name: row.few for name, row in rows.items()}
    assert labels == {name: name == "rfd_efficientnet_lite0" for name in NAMES}  # not the means over pictures


def test_a_coarser_round_trip_is_further_away_by_every_number(measured):
    fine, coarse = (measured(lambda images, step=step: images // step * step) for step in (16, 128))
    for name in NAMES:
        better = max if name in ("psnr", "ssim") else min
        assert better(fine[name].value, coarse[name].value) == fine[name].value != coarse[name].value, name
