"""A small Flickr30k folder in which every pair proves itself (benchmarks/faults/world.py)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.world import token_file, write_pictures
from data_prep import flickr30k
from ldm.data.index import ShardIndex


@pytest.fixture
def source(tmp_path) -> Path:
    """16 pictures in flickr30k-images/ with two captions each."""
    folder = tmp_path / "source"
    write_pictures(folder / "flickr30k-images")
    (folder / "results_20130124.token").write_text(token_file())
    return folder


@pytest.fixture
def prepare(source, tmp_path) -> Callable[..., ShardIndex]:
    """`prepare(out="out", **options)`: that folder, three pictures a shard, all to train on."""

    def run(out: str = "out", **options: Any) -> ShardIndex:
        defaults = {"source": str(source), "samples_per_shard": 3, "num_workers": 0}
        defaults |= {"val_share": 0.0, "test_share": 0.0}
        flickr30k.main(flickr30k.Options(out=str(tmp_path / out), **(defaults | options)))
        return ShardIndex.load(tmp_path / out)

    return run
