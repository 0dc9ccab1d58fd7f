"""A vocabulary of captions with fixed vectors: a text encoder for a denoiser that learns to read itself."""

import pytest
import torch

from data_prep.words import Options, main
from ldm import UserError
from ldm.generators.diffusion_bundle import load_codec


@pytest.fixture(scope="module")
def words(emoji, tmp_path_factory):
    out = tmp_path_factory.mktemp("words") / "bundle"
    main(Options(root=str(emoji), out=str(out), vocab_size=600, context_length=12, width=8))
    return out


def test_a_codec_takes_its_texts_from_it(words, bundle_path):
    codec = load_codec(autoencoder=str(bundle_path), text_encoder=str(words))
    states = codec.encode_prompts(["red apple", "apple red"])
    assert states.shape == (2, 12, 8)
    tokens = codec.tokenizer.encode(["red apple"])
    assert torch.equal(states[0], codec.text_encoder.table.weight[tokens[0]])


def test_it_is_never_written_over(words, emoji):
    with pytest.raises(UserError, match="bundle"):
        main(Options(root=str(emoji), out=str(words), vocab_size=600))


@pytest.mark.parametrize("wrong", [{"width": 0}, {"context_length": 0}, {"vocab_size": 100}])
def test_sizes_that_hold_nothing_are_refused(emoji, tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        main(Options(root=str(emoji), out=str(tmp_path / "bundle"), **wrong))
    assert not list(tmp_path.iterdir())
