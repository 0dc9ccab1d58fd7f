"""Facts about retrieval."""

import pytest
import torch

from ldm.metrics.retrieval import Retrieval, caption_recall, ranks


def recall_at_k(queries, gallery, truth):
    """Share of queries whose right item, row `truth` of the gallery, is among the k nearest; by k."""
    found = ranks(queries, gallery, query_keys=truth, gallery_keys=torch.arange(len(gallery)))
    return {k: (found < k).float().mean() for k in (1, 5)}


def test_a_perfect_network_finds_all_and_a_shifted_one_nothing():
    features = torch.eye(6)
    truth = torch.arange(6)
    assert recall_at_k(features, features, truth) == {1: 1.0, 5: 1.0}
    assert recall_at_k(features, features.roll(1, 0), truth)[1] == 0.0


def test_a_rank_counts_the_wrong_items_that_stand_before():
    query = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    for row in range(3):
        found = ranks(query, gallery, query_keys=torch.tensor([row]), gallery_keys=torch.arange(3))
        assert found.tolist() == [row]


def test_length_does_not_matter_only_direction():
    gallery = torch.tensor([[0.1, 0.0], [0.0, 90.0], [5.0, 5.0]])
    assert recall_at_k(torch.eye(2) * 7, gallery, torch.tensor([0, 1]))[1] == 1.0


def test_a_collapsed_network_finds_nothing():
    same = torch.ones(10, 4)
    assert recall_at_k(same, same, torch.arange(10)) == {1: 0.0, 5: 0.0}


def test_chance_is_k_over_the_gallery():
    torch.manual_seed(0)
    recall = recall_at_k(torch.randn(4000, 8), torch.randn(20, 8), torch.randint(20, (4000,)))
    assert recall[1].item() == pytest.approx(1 / 20, abs=0.015)
    assert recall[5].item() == pytest.approx(5 / 20, abs=0.03)


def test_any_of_a_pictures_captions_is_right():
    images = torch.eye(2)
    texts = torch.tensor(
        [[0.0, 1.0], [1.0, 0.1], [0.3, 1.0]]
    )  # the first picture's first caption is misleading
    recall = caption_recall(images, texts, torch.tensor([0, 0, 1]), ks=(1,))
    assert recall["r1_image_to_text"] == 0.5
    assert recall["r1_text_to_image"].item() == pytest.approx(2 / 3)


def test_a_picture_without_a_caption_is_asked_nothing():
    recall = caption_recall(torch.eye(3), torch.eye(3)[:2], torch.tensor([0, 1]), ks=(1,))
    assert recall["r1_image_to_text"] == 1.0


def test_a_query_without_a_right_item_is_refused():
    with pytest.raises(ValueError, match="no right item"):
        recall_at_k(torch.eye(2), torch.eye(2), torch.tensor([0, 7]))


def test_the_metric_in_batches_equals_the_function_on_all():
    torch.manual_seed(1)
    images, texts, keys = torch.randn(12, 6), torch.randn(12, 6), torch.arange(12) * 3 % 36
    metric = Retrieval()
    for chunk in torch.randperm(12).split(5):
        metric.update(images[chunk], texts[chunk], keys[chunk])
    assert metric.compute() == caption_recall(images, texts, torch.arange(12))


def test_the_metric_counts_a_picture_once_however_many_captions_it_has():
    metric = Retrieval(ks=(1,))
    metric.update(torch.eye(3)[[0, 0, 1, 2]], torch.eye(3)[[0, 1, 1, 2]] * 2, torch.tensor([9, 9, 4, 7]))
    # one of its two captions finds the picture with key 9, the other finds the one with key 4
    assert metric.compute()["r1_text_to_image"] == 0.75
    assert metric.compute()["r1_image_to_text"].item() == pytest.approx(2 / 3)


def test_ranks_that_each_saw_the_whole_set_do_not_change_the_numbers():
    torch.manual_seed(2)
    images, texts, keys = torch.randn(9, 4), torch.randn(9, 4), torch.arange(9)
    once, twice = Retrieval(), Retrieval()
    once.update(images, texts, keys)
    for _ in range(2):
        twice.update(images, texts, keys)
    assert twice.compute() == once.compute()
