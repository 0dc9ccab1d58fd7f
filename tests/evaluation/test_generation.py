import pytest
import torch

from ldm.evaluation.feature_pass import FeaturePass, generate_with, generated
from ldm.evaluation.protocol import Caption, CaptionSet

CAPTIONS = [Caption(text=f"picture {number}", key=f"p{number}", row=number + 5) for number in range(4)]


def requests_for(captions, *, samples, seed_base):
    caption_set = CaptionSet(name="train", split=None, captions=None, samples=samples, metrics=())
    return caption_set.requests(captions, seed_base=seed_base)


def test_each_picture_has_a_seed_of_its_own_counted_from_the_base():
    requests = requests_for(CAPTIONS, samples=3, seed_base=7)
    assert [request.seed for request in requests] == list(range(7, 19))
    assert [request.caption for request in requests[:4]] == [0, 0, 0, 1]
    assert {request.row for request in requests[3:6]} == {6}


def test_each_picture_has_a_file_name_of_its_own():
    captions = [*CAPTIONS[:2], CAPTIONS[0]]
    names = [request.name for request in requests_for(captions, samples=2, seed_base=0)]
    assert names == ["train/p0", "train/p0_1", "train/p1", "train/p1_1", "train/p0_2", "train/p0_3"]


def test_pictures_come_back_in_the_order_of_their_requests_whatever_the_batch_size(paints, observers):
    requests = requests_for(CAPTIONS, samples=2, seed_base=0)
    runs = [
        FeaturePass(observers=observers, batch_size=size)(paints, requests, wanted=["colours"], keep=8)
        for size in (1, 3, 8)
    ]
    for observed, pictures in runs:
        assert torch.equal(torch.stack(pictures), paints(requests))
        assert observed.rows.tolist() == [request.row for request in requests]


def test_a_pipeline_that_gives_no_8_bit_pictures_is_refused():
    requests = requests_for(CAPTIONS[:2], samples=1, seed_base=0)
    generate = generate_with(lambda prompts, seeds: torch.zeros(2, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"torch\.float32 \(2, 3, 8, 8\) for 2 prompts, expected torch\.uint8"
    ):
        generated(generate, requests)
