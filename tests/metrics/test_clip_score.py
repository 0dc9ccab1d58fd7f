import pytest
import torch

from ldm.metrics.picture_metric import Observed
from ldm.metrics.retrieval import ClipScore, pair_cosines


def observed(images, texts):
    numbers = torch.arange(len(images))
    return Observed(
        features={"own_clip_image": images, "own_clip_text": texts}, rows=numbers, captions=numbers
    )


def test_cosine_ignores_lengths():
    images = torch.tensor([[2.0, 0], [0, 3], [1, 1]])
    texts = torch.tensor([[5.0, 0], [0, -1], [1, 0]])
    torch.testing.assert_close(pair_cosines(images, texts), torch.tensor([1, -1, 0.5**0.5]).double())


def test_score_is_the_mean_over_all_pictures_of_all_batches():
    metric = ClipScore(clip="own_clip")
    metric.update(observed(torch.eye(3), torch.eye(3)), real=False)
    metric.update(observed(torch.eye(3)[:2], torch.eye(3)[:2].flip(0)), real=False)
    metric.update(observed(torch.eye(3), torch.eye(3)), real=True)
    assert metric.compute()["own_clip_score"] == pytest.approx(3 / 5)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_picture_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        ClipScore(clip="own_clip").compute()
