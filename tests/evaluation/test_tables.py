"""Tables of results, as a terminal shows them."""

from dataclasses import asdict

import pytest

from ldm.evaluation.result_types import Row
from ldm.evaluation.sweep import AXES, lines_of, points
from ldm.evaluation.tables import COLUMNS, READING, numbers_table

WHOLE = Row(
    set="train",
    metric="fid",
    value=23.35,
    sd=0.35,
    images=3000,
    seeds=3,
    floor=2.5,
    ceiling=4.75,
    nfe=50,
    seconds=12.5,
    params=7_000_000,
)
BARE = Row(set="autoencoder", metric="psnr", value=31.8, images=164)


def test_every_number_stands_with_its_floor_ceiling_spread_counts_and_cost():
    header, first, second = numbers_table([asdict(WHOLE), asdict(BARE)]).splitlines()
    assert tuple(header.split()) == COLUMNS
    assert "23.35 ± 0.35  2.5    4.75" in first
    assert first.endswith("3000, 3 seeds  50   12.5  7.0 M")
    assert header.index("NFE") == first.index("50 ")
    assert second.split() == ["autoencoder", "psnr", "31.8", "164,", "1", "seed"]


def test_lines_of_a_sweep_begin_with_what_was_varied_and_with_nothing_else():
    lines = [line for point in points({"scales": [1, 2]}) for line in lines_of(point, [BARE], ruler="r")]
    header, first, second = numbers_table(lines, axes=AXES).splitlines()
    assert header.split()[:2] == ["scale", "set"]
    assert [line.split()[:3] for line in (first, second)] == [
        ["1", "autoencoder", "psnr"],
        ["2", "autoencoder", "psnr"],
    ]


RESULTS = """
fid kid kid_sd is_mean is_sd fd_dinov2_vitl14 kd_efficientnet_lite0 cmmd_clip_vit_l14_336_image rfid
precision_inception recall_inception density_inception coverage_inception r1_inception r5_inception
own_clip_score clip_vit_l14_score r_precision_own_clip vendi_inception memorised_inception lpips psnr ssim
diversity_perceptual_efficientnet_lite0 rfd_efficientnet_lite0 perceptual_efficientnet_lite0
"""


@pytest.mark.parametrize("name", RESULTS.split())
def test_a_report_explains_every_number_that_it_may_show(name):
    assert any(name.startswith(key) for key in READING)
