"""The metric `composition`: its rows, its shares in closed form, and the command on real pictures."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

from data_prep.shapes import HeldOut, Options, composed
from data_prep.shapes import main as prepare
from ldm.evaluation.results import read_results
from ldm.metrics.composition import Composition, ShapesReader, claim_of, interval, row_of_caption
from ldm.metrics.picture_metric import Observed
from ldm.shapes.scene import draw
from ldm.shapes.sentences import sentences, understood


def observed(number: int) -> tuple[torch.Tensor, list[str]]:
    pictures, texts = [], []
    for k in range(number):
        random = Random(f"composition {k}")
        claim, scene = composed(random, "train", HeldOut.of(0))
        pictures.append(torch.from_numpy(draw(scene)).permute(2, 0, 1))
        texts.append(sentences(claim, random)[0])
    return torch.stack(pictures), texts


def measured(pictures: torch.Tensor, texts: list[str]) -> dict[str, float]:
    reader, metric = ShapesReader(), Composition()
    rows = torch.arange(len(texts))
    features = {**reader(pictures), "shapes_text": reader.read(texts)}
    metric.update(Observed(features=features, rows=rows, captions=rows), real=False)
    return {name: value.item() for name, value in metric.compute().items()}


def test_right_pictures_score_one_and_damaged_ones_their_share() -> None:
    pictures, texts = observed(20)
    assert measured(pictures, texts)["composition_everything"] == 1
    pictures[:5] = 127
    found = measured(pictures, texts)
    assert found["composition_everything"] == found["composition_count"] == 0.75
    assert found["composition_unreadable"] == 0.25
    assert found["composition_chance"] < 0.2


def test_a_wilson_interval_in_closed_form() -> None:
    z, n, p = 1.959963984540054, 20, 0.75
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    found = interval("x", [True] * 15 + [False] * 5)
    assert found["x_low"] == pytest.approx((middle - half) / (1 + z**2 / n))
    assert found["x_high"] == pytest.approx((middle + half) / (1 + z**2 / n))


def test_a_claim_survives_its_row() -> None:
    caption = "a red ring above  two large blue stars which are to the left of a pink cross"
    assert claim_of(row_of_caption(caption)) == understood(caption)


def test_a_folder_of_any_systems_pictures_is_measured(command: Callable[..., object], tmp_path: Path) -> None:
    prepare(Options(out=str(tmp_path / "data"), count=200))
    common = [
        "data=shapes", f"data.root={tmp_path / 'data'}", f"cache={tmp_path / 'features'}", "protocol=shapes",
        "protocol.seeds=1",
        "protocol.sets=[{name: seen, split: seen, captions: null, metrics: [composition]}]",
    ]  # fmt: skip
    command("ldm.evaluate", *common, "real=seen", f"out={tmp_path / 'out'}")
    rows = {row["metric"]: row for row in read_results(tmp_path / "out" / "results.json")["rows"]}
    assert rows["composition_everything"]["value"] == rows["composition_everything"]["real"] == 1
    assert rows["composition_unreadable"]["value"] == 0
