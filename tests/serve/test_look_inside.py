"""Which word moved which part of a picture, and which training pictures it is like."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from ldm.checkpoints.bundle import Bundle
from ldm.data.shards import PictureDataset
from ldm.generators.generator import open_generator
from ldm.io.pictures import save_picture
from ldm.models.attention import CrossAttention
from ldm.sampling.jobs import Job
from ldm.serve.explanations import (
    SIDE,
    heat_maps,
    nearest_pictures,
    networks_of,
    place_of,
    spans,
    training_root,
    watched,
    weights_of,
)
from ldm.tokenizers import train

PROMPT = "red apple, green leaf"


class Grey:
    """A system that generates grey pictures and has no network."""

    size, num_parameters, nfe, starts_from_pictures, reconstruct = 16, None, None, False, None

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, prompts, seeds, *, source=None):
        return torch.full((len(prompts), 3, 16, 16), 127, dtype=torch.uint8)

    def to(self, device):
        return self

    def settings(self):
        return {}

    def with_options(self, **changes):
        return self


@pytest.fixture(scope="module")
def opened(bundle_path):
    return open_generator(Bundle.open(bundle_path))


def test_the_weights_are_those_by_which_the_attention_mixes_values():
    attention = CrossAttention(16, 8, num_heads=2, qk_norm=True)
    tokens, context = torch.randn(1, 4, 16), attention.project(torch.randn(1, 5, 8))
    # one head at a time: with values that are one unit vector per token, the output is the weights themselves
    one_hot = torch.eye(5).expand(1, 2, 5, 5)
    wide = context._replace(values=torch.cat([one_hot, torch.zeros(1, 2, 5, 3)], dim=-1))
    attention.out = nn.Identity()
    mixed = attention(tokens, wide).unflatten(-1, (2, 8)).mean(dim=2)[0, :, :5]
    torch.testing.assert_close(weights_of(attention, tokens, context), mixed)


def test_every_word_has_a_map_from_0_to_1(opened):
    found = heat_maps(opened, Job(prompt=PROMPT, seed=0, name="again"))
    assert [each["word"] for each in found["words"]] == ["red", "apple", "green", "leaf"]
    for each in found["words"]:
        grid = torch.tensor(each["map"])
        assert grid.shape == (SIDE, SIDE)
        assert (grid.min(), grid.max()) == (0, 1)


def test_to_watch_changes_no_picture(opened):
    generator = opened.generator
    before = generator([PROMPT], [0])
    with watched(networks_of(generator)) as maps:
        assert torch.equal(generator([PROMPT], [0]), before)
    seen = maps.seen
    assert seen > 0
    generator([PROMPT], [0])
    assert maps.seen == seen  # no hook is left


def test_the_average_of_all_maps_adds_up_to_one_at_each_place(opened):
    with torch.no_grad(), watched(networks_of(opened.generator)) as maps:
        opened.generator([PROMPT], [0])
    torch.testing.assert_close(maps.mean().sum(dim=0), torch.ones(SIDE, SIDE))


def test_a_system_without_cross_attention_says_so(opened):
    found = heat_maps(
        replace(opened, generator=Grey(opened.generator.tokenizer)), Job(prompt=PROMPT, seed=0, name="again")
    )
    assert found["words"] == []
    assert "no cross-attention" in found["sentence"]


def test_words_have_the_positions_of_their_tokens():
    tokenizer = train(["red apple red apple tree"], vocab_size=600, context_length=8)
    ids = tokenizer.encode(["red, apple strange"])[0].tolist()
    placed = spans("red, apple strange", tokenizer)
    assert [word for word, _ in placed] == ["red", "apple", "strange"]
    for word, positions in placed:
        own = tokenizer.encode([word])[0].tolist()[1:]
        assert [ids[each] for each in positions] == own[: len(positions)]
    assert max(position for _, positions in placed for position in positions) < 7  # the last one is the end


@pytest.mark.parametrize(
    ("row", "column", "place"), [(0, 0, "upper left"), (15, 16, "middle"), (31, 31, "lower right")]
)
def test_a_place_is_named(row, column, place):
    grid = torch.zeros(SIDE, SIDE)
    grid[row, column] = 1
    assert place_of(grid) == place


@pytest.fixture
def trained(write_tiny_bundle, emoji, tmp_path) -> Bundle:
    """A bundle in the folder of the run that has left it."""
    bundle = write_tiny_bundle(tmp_path / "run" / "bundle")
    (tmp_path / "run" / "config.yaml").write_text(f"data: {{root: {emoji}}}\n")
    return Bundle.open(bundle)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_of_a_training_picture_is_called_one(trained, emoji, pictures, tmp_path, mirrored):
    number, image = 3, PictureDataset(str(emoji), split="train", size=32).image(3)
    save_picture(image.flip(-1) if mirrored else image, tmp_path / "copy.png", texts={})
    found = nearest_pictures(trained, tmp_path / "copy.png")
    first = found["neighbours"][0]
    assert "counts as a copy" in found["sentence"]
    assert (first["distance"] < 2, first["mirrored"]) == (True, mirrored)
    assert first["caption"] == pictures.train.captions(number)[0]


def test_a_picture_like_no_other_is_none(trained, tmp_path):
    save_picture(torch.randint(256, (3, 16, 16), dtype=torch.uint8), tmp_path / "noise.png", texts={})
    found = nearest_pictures(trained, tmp_path / "noise.png")
    assert found["sentence"].startswith("No copy")
    distances = [each["distance"] for each in found["neighbours"]]
    assert distances == sorted(distances)


def test_without_its_training_pictures_a_bundle_says_so(bundle_path, tmp_path):
    save_picture(torch.zeros(3, 16, 16, dtype=torch.uint8), tmp_path / "picture.png", texts={})
    bundle = Bundle.open(bundle_path)
    assert training_root(bundle) is None
    assert "not on this machine" in nearest_pictures(bundle, tmp_path / "picture.png")["sentence"]


def test_the_page_is_told_words_steps_and_neighbours_of_a_picture(client, make):
    (name,) = make(PROMPT, options={"steps": 3})["pictures"]
    words = client.get(f"/v1/pictures/{name}/attention").json()["words"]
    assert [each["word"] for each in words] == ["red", "apple", "green", "leaf"]
    film = client.get(f"/v1/pictures/{name}/filmstrip").json()
    with Image.open(io.BytesIO(client.get(film["url"]).content)) as strip:
        assert (film["count"], strip.width) == (3, 3 * strip.height)
    assert "not on this machine" in client.get(f"/v1/pictures/{name}/nearest").json()["sentence"]


def test_a_source_that_was_deleted_is_said_without_its_path(client, make):
    (source,) = make()["pictures"]
    (name,) = make(source={"picture": source})["pictures"]
    client.delete(f"/v1/pictures/{source}")
    answer = client.get(f"/v1/pictures/{name}/attention")
    assert (answer.status_code, answer.json()["error"]) == (
        422,
        "the picture that this one was started from was deleted: there are no maps",
    )


@pytest.mark.parametrize("part", ["nearest", "attention", "filmstrip", "filmstrip/strip"])
def test_what_is_no_picture_has_no_inside(client, part):
    assert client.get(f"/v1/pictures/{'0' * 16}/{part}").status_code == 404
    assert client.get(f"/v1/pictures/..%2f..%2fserve/{part}").status_code in (404, 422)
