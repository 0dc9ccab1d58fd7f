"""An InceptionV3 in the published format, and batches of features as measures see them."""

from pathlib import Path

import pytest
import torch

from benchmarks.drawn_pictures import write_inception
from ldm.metrics.picture_metric import Observed


@pytest.fixture(scope="session")
def inception_path(tmp_path_factory) -> Path:
    """Random weights; read the file, never write to it."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    write_inception(path)
    return path


@pytest.fixture
def feed():
    """`feed(metric, real, generated, splits=..)`: both sides in batches of one kind of features."""

    def batches(features, splits):
        numbers = torch.arange(len(features))
        for rows in numbers.split(splits):
            yield Observed(features={"net": features[rows]}, rows=rows, captions=rows)

    def feed(metric, real, generated, *, splits=1000):
        for batch in batches(real, splits):
            metric.update(batch, real=True)
        for batch in batches(generated, splits):
            metric.update(batch, real=False)
        return {name: value.item() for name, value in metric.compute().items()}

    return feed
