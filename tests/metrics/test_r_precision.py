import pytest
import torch

from ldm.metrics.picture_metric import Observed
from ldm.metrics.retrieval import RPrecision, own_caption_first


def test_right_pictures_come_first_and_turned_ones_do_not():
    texts, captions = torch.eye(12), torch.arange(12)
    assert own_caption_first(texts, texts, captions, candidates=5).all()
    assert not own_caption_first(-texts, texts, captions, candidates=5).any()


def test_a_tie_counts_against_the_picture():
    texts = torch.ones(6, 3)
    assert not own_caption_first(texts, texts, torch.arange(6), candidates=6).any()


def test_chance_is_one_in_the_candidates():
    """Random pictures and captions, 1,000 of them: the share is binomial about 1 / 10."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(1000, 64, generator=generator), torch.randn(1000, 64, generator=generator)
    share = own_caption_first(images, texts, torch.arange(1000), candidates=10).double().mean()
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 1000) ** 0.5


def test_all_candidates_or_fewer_in_any_batches():
    generator = torch.Generator().manual_seed(1)
    texts = torch.randn(20, 8, generator=generator).repeat_interleave(2, dim=0)  # two pictures a caption
    images = texts + torch.randn(40, 8, generator=generator)
    captions = torch.arange(20).repeat_interleave(2)

    def score(order, splits):
        metric = RPrecision(clip="judge", candidates=15)
        for rows in order.split(splits):
            features = {"judge_image": images[rows], "judge_text": texts[rows]}
            metric.update(Observed(features, rows=rows, captions=captions[rows]), real=False)
        return metric.compute()["r_precision_judge"]

    whole = score(torch.arange(40), 40)
    assert 0 < whole < 1
    assert score(torch.randperm(40, generator=generator), 7) == whole


def test_too_few_captions_are_refused():
    with pytest.raises(ValueError, match="among 100 captions needs as many different ones, got 3"):
        own_caption_first(torch.eye(3), torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="must be at least 2"):
        RPrecision(clip="judge", candidates=1)
