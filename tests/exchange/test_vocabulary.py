"""Facts about tokenizer files: transformers gives the same ids as ours, from files of either."""

import json

import pytest
import torch
from transformers import CLIPTokenizer

from ldm import UserError
from ldm.exchange.folder import read_vocabulary, write_vocabulary
from ldm.tokenizers import Tokenizer
from ldm.tokenizers.clip_vocabulary import clip_bpe

TEXTS = ["", "a red apple", "Café's 12 cats!!", "日本 🙂 emoji", "word " * 40, "  tabs\tand\nlines  "]


def theirs(folder, texts) -> torch.Tensor:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


@pytest.mark.parametrize("pad_id", [0, 49_407])
def test_clips_own_vocabulary_gives_transformers_the_same_ids(tmp_path, pad_id):
    ours = clip_bpe(pad_id=pad_id)
    write_vocabulary(ours, tmp_path / "files")
    texts = [text for text in TEXTS if pad_id or "!" not in text]  # 0 is "!", which they take for padding
    assert torch.equal(theirs(tmp_path / "files", texts), ours.encode(texts))


def test_so_does_a_vocabulary_of_ones_own(tmp_path, tokenizer):
    write_vocabulary(tokenizer, tmp_path / "files")
    assert torch.equal(theirs(tmp_path / "files", TEXTS), tokenizer.encode(TEXTS))


@pytest.mark.parametrize("form", ["ours", "transformers"])
def test_files_come_back_as_the_same_tokenizer(tmp_path, tokenizer, form):
    folder = tmp_path / "files"
    write_vocabulary(tokenizer, folder)
    if form == "transformers":
        CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
        folder = tmp_path / "saved"
    read = read_vocabulary(folder, context_length=16, vocab_size=640)
    assert read.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("vocab.json", lambda text: text.replace('"a": ', '"aa": '), "has another id than in CLIP's order"),
        ("merges.txt", lambda text: text + "x\n", "merges are damaged"),
        ("merges.txt", lambda text: text + "x y\n", "has another id than in CLIP's order"),
        ("tokenizer_config.json", lambda text: text.replace("16", "32"), "model_max_length=32"),
        ("tokenizer_config.json", lambda text: text.replace("<|endoftext|>", "<pad>"), "pad_token='<pad>'"),
        ("vocab.json", lambda text: "[1]", "expected a mapping"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path, tokenizer, file, change, sentence):
    write_vocabulary(tokenizer, tmp_path / "files")
    path = tmp_path / "files" / file
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        read_vocabulary(tmp_path / "files", context_length=16, vocab_size=640)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": [1]}, "model holds a list"),
        ({"model": {"vocab": ["a"], "merges": []}}, "vocab holds a list"),
        ({"model": {"vocab": {"a": [0]}, "merges": []}}, "an id is no number"),
        ({"model": {"vocab": {}, "merges": 3}}, "merges=3 must be a list"),
        ({"added_tokens": 3}, "added_tokens=3 must be a list"),
        ({"added_tokens": [{"id": 3}]}, "added_tokens lacks the field content"),
    ],
)
def test_a_damaged_file_of_transformers_is_refused_in_a_sentence(tmp_path, tokenizer, change, sentence):
    write_vocabulary(tokenizer, tmp_path / "files")
    CLIPTokenizer.from_pretrained(tmp_path / "files").save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        read_vocabulary(tmp_path / "saved", context_length=16, vocab_size=640)


def test_an_id_without_a_spelling_pads_nothing(tmp_path):
    ours = Tokenizer([], vocab_size=640, context_length=16, pad_id=600)
    with pytest.raises(ValueError, match="pad_id=600 has no spelling"):
        write_vocabulary(ours, tmp_path / "files")
