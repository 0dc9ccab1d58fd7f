"""All captions of a split, for what is learned from text alone."""

from ldm.data.index import ShardIndex
from ldm.data.shards import ShardReader


def captions(root: str, *, split: str = "train") -> list[str]:
    """Every caption of every picture of one split, in the order of the shards.

    Raises:
        DataError: no such data set or split, or a damaged one.
    """
    reader = ShardReader(ShardIndex.load(root), split=split)
    return [text for number in range(len(reader)) for text in reader.record(number)["texts"]]
