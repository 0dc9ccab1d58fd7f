import pytest
import torch

from ldm.evaluation.captions import Caption
from ldm.evaluation.generation import drawn_by, generate, requests_for

CAPTIONS = [Caption(text=f"picture {number}", key=f"p{number}", row=number + 5) for number in range(4)]


def test_each_picture_has_a_seed_of_its_own_counted_from_the_base():
    requests = requests_for(CAPTIONS, samples=3, seed_base=7)
    assert [request.seed for request in requests] == list(range(7, 19))
    assert [request.caption for request in requests[:4]] == [0, 0, 0, 1]
    assert {request.row for request in requests[3:6]} == {6}


def test_each_picture_has_a_file_name_of_its_own():
    captions = [*CAPTIONS[:2], CAPTIONS[0]]
    names = [request.name for request in requests_for(captions, samples=2, seed_base=0, folder="train")]
    assert names == ["train/p0", "train/p0_1", "train/p1", "train/p1_1", "train/p0_2", "train/p0_3"]


def test_pictures_do_not_depend_on_the_batch_size(paints):
    requests = requests_for(CAPTIONS, samples=2, seed_base=0)
    runs = [
        torch.cat(
            [images for _, images in generate(paints, requests, batch_size=size, title="", progress=False)]
        )
        for size in (1, 3, 8)
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_requests_come_back_with_their_pictures_in_order(paints):
    requests = requests_for(CAPTIONS, samples=2, seed_base=0)
    returned = [
        request for batch, _ in generate(paints, requests, batch_size=3, title="") for request in batch
    ]
    assert returned == requests


def test_a_pipeline_that_gives_no_8_bit_pictures_is_refused():
    requests = requests_for(CAPTIONS, samples=1, seed_base=0)
    batches = generate(
        drawn_by(lambda prompts, seeds: torch.zeros(2, 3, 8, 8)), requests, batch_size=2, title=""
    )
    with pytest.raises(
        ValueError, match=r"torch\.float32 \(2, 3, 8, 8\) for 2 prompts, expected torch\.uint8"
    ):
        next(batches)
