"""Facts about joined captions: whole ones, within the context, the same at every resume and on all ranks."""

from collections import Counter
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch

from benchmarks.faults.world import write_pictures
from data_prep import folder
from ldm import UserError
from ldm.data.augment import choose
from ldm.data.datamodule import PictureData
from ldm.data.joined import JoinedCaptions, joined, joins
from ldm.data.latents import LatentData
from ldm.data.shards import PictureDataset
from ldm.data.stored import stored_states, stored_tokens
from ldm.data.stream import Positions, StreamDataset

CAPTIONS = ["a red cat .", "two cats", "one cat on a mat .", "a mat!", "an animal"]


def data(root, codec, **options) -> LatentData:
    pictures = PictureData(root=str(root), size=16, batch_size=4, seed=3)
    found = LatentData(pictures=pictures, codec=codec, texts=JoinedCaptions(**options))
    found.setup("fit")
    return found


def test_captions_are_joined_by_full_stops():
    assert joined(CAPTIONS[:2]) == "a red cat . two cats"
    assert joined(["two cats ", "a mat!", "an animal"]) == "two cats. a mat! an animal"
    assert joined(["two cats"]) == "two cats"


def test_a_join_is_of_whole_captions_that_fit(tokenizer):
    found = [joins(CAPTIONS, tokenizer, number=number, most=4, count=3) for number in range(60)]
    sizes = Counter()
    for text in (each for own in found for each in own):
        parts = [caption for caption in CAPTIONS if caption.rstrip(" .") in text]
        assert text in {joined(each) for each in permutations(parts)}
        assert tokenizer.count(text) <= tokenizer.context_length
        sizes[len(parts)] += 1
    assert set(sizes) <= {1, 2, 3, 4}
    assert sizes[2] > 10  # of at most 16 tokens, few hold more
    assert found[7] == joins(CAPTIONS, tokenizer, number=7, most=4, count=3)
    assert found[7] != found[8]


def test_what_does_not_fit_is_left_out_and_one_caption_stays(tokenizer):
    long = ["an apple " * 20, "a pear " * 20]
    assert set(joins(long, tokenizer, number=0, most=2, count=4)) <= set(long)
    assert joins(["alone"], tokenizer, number=0, most=3, count=2) == ["alone", "alone"]


def test_a_set_of_one_caption_a_picture_is_refused(tmp_path, codec):
    write_pictures(tmp_path / "pictures")
    for picture in sorted((tmp_path / "pictures").iterdir()):
        picture.with_suffix(".txt").write_text("one caption\n")
    folder.main(folder.Options(source=str(tmp_path / "pictures"), out=str(tmp_path / "set"), num_workers=0))
    pictures = PictureDataset(str(tmp_path / "set"), split="train", size=16)
    with pytest.raises(UserError, match=r"captions=joined: no picture of \S+set has two: leave it out"):
        JoinedCaptions()(pictures, codec)
    single = JoinedCaptions(most=1)(pictures, codec)
    assert single.folder == stored_states(pictures, codec).folder


def test_a_share_of_the_positions_has_a_join_and_the_others_the_caption_of_before():
    texts, rows = JoinedCaptions(share=0.3, per_picture=4), range(9)
    chosen = [texts.choose(rows, seed=1, position=position) for position in range(4000)]
    singles = [(row, choose(range(5), seed=1, position=p)) for p, row in enumerate(chosen) if row < 5]
    assert all(row == before for row, before in singles)
    # four standard deviations of a share of 4,000
    assert len(singles) / 4000 == pytest.approx(0.7, abs=4 * (0.21 / 4000) ** 0.5)
    assert {*chosen} == {*rows}


def test_the_stored_rows_are_the_texts_states(copy_emoji, codec):
    pictures = PictureDataset(str(copy_emoji()), split="train", size=16)
    texts = JoinedCaptions(most=2, per_picture=2, texts=stored_states)
    stored, single = texts(pictures, codec).arrays(), stored_states(pictures, codec).arrays()
    for number in (0, 5):
        own = stored.reader.record(number)["texts"]
        assert own[:-2] == pictures.captions(number)
        rows = stored.read(number)
        assert np.array_equal(rows, codec.context(codec.tokenizer.encode(own)).numpy())
        assert np.array_equal(rows[:-2], single.read(number))


@pytest.mark.parametrize("options", [{"most": 1}, {"share": 0}])
def test_without_joins_a_training_is_the_one_of_before_to_the_bit(copy_emoji, codec, options):
    root = copy_emoji()
    found = data(root, codec, **options).train
    pictures = PictureData(root=str(root), size=16, batch_size=4, seed=3)
    plain = LatentData(pictures=pictures, codec=codec)
    plain.setup("fit")
    assert found.encoded.folder == plain.train.encoded.folder
    for position in range(20):
        ours, theirs = (split.sample(position, position) for split in (found, plain.train))
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_sample_depends_on_its_position_alone_so_resumes_and_ranks_agree(copy_emoji, codec):
    root, options = copy_emoji(), {"most": 2, "per_picture": 2, "texts": partial(stored_tokens)}
    first, again = (data(root, codec, **options).train for _ in range(2))

    def sampled(split, **place):
        stream = StreamDataset(split.sample, size=len(split), seed=3)
        batches = Positions(batch_size=2, num_batches=6, **place)
        return {p: stream[p]["tokens"] for batch in batches for p in batch}

    whole = sampled(first)
    resumed = sampled(again, start=4, done=2)
    both = [sampled(again, rank=rank, world_size=2) for rank in range(2)]
    assert resumed.keys() < whole.keys()
    for found in (resumed, *both):
        assert all(np.array_equal(whole[p], found[p]) for p in found.keys() & whole.keys())
    assert {*both[0]} | {*both[1]} >= {*whole}


def test_pictures_to_validate_on_keep_single_captions(copy_emoji, codec):
    found = data(copy_emoji(), codec, share=1.0)
    captions = found.pictures.val.captions(0)
    assert found.val.encoded.reader.record(0)["texts"] == captions
    position = found.val[0]["context"]
    states = codec.context(codec.tokenizer.encode(captions))
    assert any(torch.equal(torch.from_numpy(position.copy()), each) for each in states)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"most": 0}, "most=0 must be at least 1"),
        ({"per_picture": 0}, "per_picture=0 must be at least 1"),
        ({"share": 1.5}, "share=1.5 must lie between 0 and 1"),
        ({"share": float("nan")}, "share=nan must lie between 0 and 1"),
    ],
)
def test_options_that_no_training_can_have_are_refused(options, sentence):
    with pytest.raises(UserError, match=f"model.datamodule.texts.{sentence}"):
        JoinedCaptions(**options)
