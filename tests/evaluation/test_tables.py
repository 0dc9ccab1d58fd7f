"""Tables of results, as a terminal shows them."""

from dataclasses import asdict

import pytest
import yaml

from ldm.config import CONF, build
from ldm.evaluate import AXES, points
from ldm.evaluation.report import COLUMNS, numbers_table, readings_list
from ldm.evaluation.results import Row

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
    lines = [{**point, **asdict(BARE)} for point in points({"scales": [1, 2]})]
    header, first, second = numbers_table(lines, axes=[*AXES.values()]).splitlines()
    assert header.split()[:2] == ["scale", "set"]
    assert [line.split()[:3] for line in (first, second)] == [
        ["1", "autoencoder", "psnr"],
        ["2", "autoencoder", "psnr"],
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "metric").glob("*.yaml")))
def test_every_metric_says_how_its_numbers_are_read(name):
    (node,) = yaml.safe_load((CONF / "metric" / f"{name}.yaml").read_text()).values()
    assert build(node).reading


def test_a_report_explains_every_number_once_by_what_its_metric_says(evaluator, paints):
    rows = [asdict(row) for row in evaluator.measure(paints, evaluator.protocol.sets[0]).rows]
    readings = {row["metric"]: row["reading"] for row in rows}
    assert readings_list(readings).splitlines() == [
        f"- `fd_colours`: {evaluator.metrics['frechet'].reading}.",
        f"- `r1_colours`, `r5_colours`: {evaluator.metrics['nearest'].reading}.",
    ]
