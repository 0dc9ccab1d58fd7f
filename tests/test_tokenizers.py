"""Facts about the tokenizers."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.tokenizer_identity import fuzzed
from ldm.checkpoints.bundle import load_tokenizer
from ldm.checkpoints.bundle_writer import save_tokenizer
from ldm.tokenizers import Tokenizer, clean, train
from ldm.tokenizers.clip_vocabulary import clip_bpe

CAPTIONS = Path(__file__).parent.parent / "ldm/assets/emoji/captions.json"
TEXTS = [
    text
    for record in json.loads(CAPTIONS.read_text(encoding="utf-8")).values()
    for text in record["captions"]
]
ODD = [
    "",
    "   ",
    "!",
    "It's, DON'T we'LL i'D",
    "日本語 中文",
    "हिन्दी ไทย عربى",
    "🍎🍏 red apple",
    "a\x1cb\x85c\ttab\nline",
    "&amp;amp; &lt;b&gt;",
    "â€œquotedâ€\x9d naÃ¯ve",
    "12345 3.14 ½ ²",
    "<|endoftext|> <|startoftext|> a cat",
    "${oc.env:HOME} {} %s",
    "x" * 500,
    "long " * 200,
    "é è ü İ ǅ ß a\u200bb",
    "\x00\x01\x7f",
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train(TEXTS, vocab_size=1024, context_length=16)


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return clip_bpe()


def test_clip_bpe_gives_the_ids_of_open_clip(clip):
    open_clip = pytest.importorskip("open_clip.tokenizer")
    texts = TEXTS + ODD
    assert torch.equal(clip.encode(texts), open_clip.SimpleTokenizer()(texts))
    assert (clip.start_id, clip.eot_id, clip.vocab_size) == (49406, 49407, 49408)


def test_fuzzed_strings_get_the_ids_of_open_clip(clip):
    open_clip = pytest.importorskip("open_clip.tokenizer")
    texts = fuzzed(400, seed=3)
    assert torch.equal(clip.encode(texts), open_clip.SimpleTokenizer()(texts))


def test_letters_are_those_of_clips_own_code(clip):
    """A letter of Unicode 17, an iota below another letter, a long s: words end where open_clip's do."""
    open_clip = pytest.importorskip("open_clip.tokenizer")
    texts = ["a\u088fb1 \u208f\u208f", "\u09e0\u0345", "it'\u017f it's", "\U00010940\U00010941 x"]
    assert torch.equal(clip.encode(texts), open_clip.SimpleTokenizer()(texts))


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, Any]:
    """Facts of another process: the merges of `ours` trained there, and whether open_clip was imported."""
    code = (
        "import json, sys; from ldm.tokenizers import train; "
        "from ldm.tokenizers.clip_vocabulary import clip_bpe; texts = json.load(sys.stdin); "
        "merges = train(texts, vocab_size=1024, context_length=16).merges; clip_bpe(); "
        "print(json.dumps({'merges': merges, 'open_clip': 'open_clip' in sys.modules}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(TEXTS), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_vocabulary_is_found_without_importing_open_clip(elsewhere):
    assert elsewhere["open_clip"] is False


def test_stable_diffusion_pads_with_the_end_token():
    padded = clip_bpe(context_length=8, pad_id=49407).encode(["a cat"])
    assert padded.tolist() == [[49406, 320, 2368] + [49407] * 5]


@pytest.mark.parametrize("text", ODD)
def test_a_row_is_start_text_one_end_and_pads(ours, text):
    row = ours.encode([text])[0].tolist()
    length = min(ours.count(text), ours.context_length)
    assert len(row) == ours.context_length
    assert row[0] == ours.start_id
    assert row[length - 1] == ours.eot_id
    assert set(row[length:]) <= {ours.pad_id}
    assert not {ours.start_id, ours.eot_id} & set(row[1 : length - 1])  # no spelling makes a control token


@pytest.mark.parametrize("word", ["<|endoftext|>", "<end_of_text>", "</w>"])
def test_control_words_in_a_prompt_are_plain_text(clip, word):
    row = clip.encode([f"a {word} cat"])[0].tolist()
    assert row.count(clip.start_id) == row.count(clip.eot_id) == 1
    assert clip.count(f"a {word} cat") > clip.count("a cat") + 1


def test_a_long_text_loses_its_tail_not_its_end(ours):
    short, long = ours.encode(["red apple " * 5, "red apple " * 500])
    assert long[-1] == ours.eot_id
    assert torch.equal(short[:8], long[:8])
    assert ours.count("red apple " * 500) > ours.context_length


@pytest.mark.parametrize(
    "text",
    [
        "a red apple on a table " * 12,
        "&ngE;" * 20,
        "Ünïcödé 猫 🐈 " * 9,
        "x" * 40,
        "red apple",
        "1234 56789 0123",  # 14 digits and spaces: a token a digit
        "a & b",
        "ﬁﬂ İ" * 4,
    ],
)
def test_a_text_is_cut_if_the_model_reads_less_than_all_of_it(ours, text):
    cut = ours.cut(text)
    assert (cut is not None) == (ours.count(text) > ours.context_length)
    if cut is not None:
        assert (cut.tokens, cut.limit) == (ours.count(text), ours.context_length)
        assert cut.seen in clean(text)
        assert ours.count(cut.seen) <= ours.context_length


def test_the_last_words_that_are_read_are_shown(ours):
    words = [f"{number}" for number in range(10)]  # a token each
    cut = ours.cut(" ".join(words * 3))
    read = ours.context_length - 2
    assert cut.seen == " ".join((words * 3)[:read])[-30:]
    assert str(cut) == (
        f"has 32 tokens, the model reads {ours.context_length}: what follows '...{cut.seen}' is not seen"
    )
    assert ours.encode([" ".join((words * 3)[:read])]).equal(ours.encode([" ".join(words * 3)]))


def test_one_line_tells_of_all_texts_that_are_cut(ours):
    long, longer = "1 " * 30, "2 " * 50
    assert ours.cut_line(["red apple"], what="prompt") is None
    assert ours.cut_line([], what="prompt") is None
    assert ours.cut_line([long], what="prompt").startswith("prompt has 32 tokens, the model reads 16: what")
    assert ours.cut_line(["a", "b", long], what="prompt").startswith("prompt 3 has 32 tokens, ")
    line = ours.cut_line(["a", longer, long, "b"], what="caption")
    assert line.startswith("2 of 4 captions (50 %) are cut; the longest, caption 2, has 52 tokens, the model")


def test_a_prompt_of_100_kb_is_taken(ours):
    assert ours.encode(["é" * 50_000])[0, -1] == ours.eot_id


def test_case_and_spacing_do_not_matter(ours):
    first, second = ours.encode(["Red  Apple", "red apple"])
    assert torch.equal(first, second)


def test_frequent_words_become_single_tokens(ours):
    assert ours.count("face") == 3
    assert ours.count("zyx") > 3


def test_training_gives_the_same_vocabulary_in_every_process(ours, elsewhere):
    assert [tuple(merge) for merge in elsewhere["merges"]] == ours.merges


def test_few_texts_keep_the_vocabulary_size_asked_for():
    small = train(["a cat"], vocab_size=1024, context_length=8)
    assert (small.vocab_size, small.eot_id) == (1024, 1023)
    assert len(small.merges) < 10


def test_a_saved_tokenizer_is_the_same_tokenizer(ours, tmp_path):
    save_tokenizer(ours, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert torch.equal(loaded.encode(TEXTS[:100] + ODD), ours.encode(TEXTS[:100] + ODD))
    assert (loaded.vocab_size, loaded.context_length, loaded.pad_id) == (1024, 16, 1023)


HEADER = '{"format": "ldm-tokenizer-1", "context_length": 8, "pad_id": 0'
DAMAGED = {
    "empty": "",
    "no mapping": "[]",
    "no format": "{}",
    "no json": "not json",
    "another format": HEADER.replace("-1", "-9") + ', "vocab_size": 600, "merges": []}',
    "half a merge": HEADER + ', "vocab_size": 600, "merges": ["a"]}',
    "a merge of nothing": HEADER + ', "vocab_size": 600, "merges": ["ab c"]}',
    "too few ids": HEADER + ', "vocab_size": 10, "merges": []}',
    "a context of terabytes": HEADER.replace("8", str(10**12)) + ', "vocab_size": 600, "merges": []}',
    "an endless vocabulary": HEADER + ', "vocab_size": Infinity, "merges": []}',
    "half an id": HEADER + ', "vocab_size": 600.5, "merges": []}',
    "a size in words": HEADER + ', "vocab_size": "600", "merges": []}',
    "depth": "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_with_its_name(tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    path.write_text(DAMAGED[damage])
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b"a b\n" * 9)[:-9],
        gzip.compress(b"a\n" * 9),
        b"\x1f\x8b\x08" + bytes(40),
    ],
    ids=["no gzip", "cut", "few merges", "zeros"],
)
def test_a_vocabulary_that_is_damaged_is_refused(tmp_path, content):
    (tmp_path / "vocabulary.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"CLIP's vocabulary .* cannot be read"):
        clip_bpe(tmp_path / "vocabulary.gz")


def test_missing_files_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "none.json")
    with pytest.raises(ValueError, match="cannot be read"):
        clip_bpe(tmp_path / "none.txt.gz")


def test_one_string_is_not_a_list_of_texts(ours):
    with pytest.raises(ValueError, match="list of texts"):
        ours.encode("a cat")
