"""Facts about where weights come from: a commit is named, and what can't be fetched is told how to."""

import shutil

import pytest
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from ldm.exchange.importing import locate

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def _without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fetched(tmp_path):
    """`fetched(repository)`: where the hub's client keeps what it once fetched of it at COMMIT."""

    def snapshot(repository: str):
        folder = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        return folder / "snapshots" / COMMIT

    return snapshot


def test_what_was_fetched_once_is_read_without_a_network(fetched, saved, tiny):
    shutil.copytree(saved, fetched("owner/name"))
    name = f"hf://owner/name@{COMMIT}"
    assert tiny(name).parts.keys() == {"backbone", "autoencoder", "text_encoder"}
    assert tiny(name).files[0].is_relative_to(locate(name).path)
    assert locate(f"{name}/unet/config.json").path == locate(name).path / "unet" / "config.json"


@pytest.mark.parametrize(("tag", "quick"), [("laion400m_e32", True), ("laion2b_s34b_b79k", False)])
def test_a_tag_tells_its_model_activation_and_pictures(fetched, tag, quick):
    """Weights that were trained with OpenAI's activation are read with it, whatever the model's config."""
    repositories = {
        "laion400m_e32": "timm/vit_base_patch32_clip_224.laion400m_e32",
        "laion2b_s34b_b79k": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    }
    folder = fetched(repositories[tag])
    folder.mkdir(parents=True)
    (folder / "open_clip_model.safetensors").touch()
    source = locate(f"open_clip://ViT-B-32/{tag}")
    assert source.path == folder / "open_clip_model.safetensors"
    assert (source.model, source.quick_gelu) == ("ViT-B-32", quick)
    assert source.pixels == (list(OPENAI_DATASET_MEAN), list(OPENAI_DATASET_STD))


@pytest.mark.parametrize(
    "name", ["hf://a/b", "hf://a/b@main", "hf://a/b@v1.0", f"hf://a/b@{COMMIT[:7]}", f"hf://b@{COMMIT}"]
)
def test_a_name_that_can_be_moved_is_refused(name):
    with pytest.raises(ValueError, match="is not pinned: write hf://owner/name@commit"):
        locate(name)


@pytest.mark.parametrize(("file", "asked"), [("", ""), ("/v1-5.safetensors", "v1-5.safetensors ")])
def test_what_is_out_of_reach_is_told_how_to_be_fetched(file, asked):
    command = f"hf download owner/name {asked}--revision {COMMIT} --local-dir models/name"
    with pytest.raises(ValueError, match="was not fetched") as refused:
        locate(f"hf://owner/name@{COMMIT}{file}")
    assert f"{command}; then from=models/name" in str(refused.value)


def test_a_path_that_is_not_there_is_told_the_same(tmp_path):
    with pytest.raises(ValueError, match="does not exist: hf download"):
        locate(str(tmp_path / "nothing"))


def test_a_tag_that_was_never_published_is_answered_with_those_that_were():
    with pytest.raises(
        ValueError, match=r"open_clip has no weights 'laion' of 'ViT-B-32'; there are: .*openai"
    ):
        locate("open_clip://ViT-B-32/laion")
    with pytest.raises(ValueError, match="is no tag of open_clip"):
        locate("open_clip://ViT-B-32")
