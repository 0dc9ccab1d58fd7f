"""The README.md of bundles and exports: what hubs read, and what no stranger may read."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.bundle_writer import model_card, origin
from ldm.checkpoints.provenance import published
from ldm.construct import CONFIG_DIR
from ldm.data.index import ShardIndex
from ldm.exchange.exporting import PLACES, results_of

CONFIG = {"parts": {"backbone": {}, "autoencoder": {}}, "size": 64, "origin": {"experiment": "mine"}}


def front(text: str) -> dict:
    """The YAML at the head of a card."""
    return yaml.safe_load(text.split("---\n")[1])


def test_a_bundle_has_a_card_that_hubs_read(bundle_path):
    text = (bundle_path / "README.md").read_text()
    found = front(text)
    assert (found["library_name"], found["pipeline_tag"]) == ("ldm", "text-to-image")
    assert found["license"] == "unknown"
    assert "text-to-image" in found["tags"]
    for section in ("# tests", "## Use", "## Training", "## Numbers", "## Licence", "## Limits and misuse"):
        assert f"\n{section}\n" in text


def test_an_autoencoder_is_no_text_to_image_model():
    text = model_card({"parts": {"autoencoder": {}}, "size": 64, "origin": {"experiment": "vae"}})
    assert "pipeline_tag" not in front(text)
    assert "codec.autoencoder=<this folder>" in text


def test_the_training_set_is_named_with_the_hash_of_its_index(emoji):
    told = origin({"name": "mine", "data": {"root": str(emoji)}})
    text = model_card(CONFIG | {"origin": told})
    assert f"trained on {emoji.name} (sha256 of its index: {ShardIndex.load(emoji).sha256})" in text
    assert str(emoji.parent) not in text


def test_data_without_an_index_has_no_hash(tmp_path):
    assert "data" not in origin({"name": "mine", "data": {"root": str(tmp_path / "{0..9}.tar")}})
    assert "data" not in origin({"name": "mine"})


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (f"data.root={Path.home()}/secret/birds", "data.root=.../birds"),
        ("init=~/secret/birds", "init=.../birds"),
        ("data.root='/secret/it\\'s, a b/birds'", "data.root='.../birds'"),
        ("data.roots=[/secret/birds]", "data.roots=[.../birds]"),
        ("data={root:/secret/birds}", "data={root:.../birds}"),
        ("data.root=file:///secret/birds", "data.root=file://.../birds"),
        ("/secret/birds", ".../birds"),
        ("--config-dir=/birds", "--config-dir=.../birds"),
        ("data.root=data/birds", "data.root=data/birds"),
        ("data.root=../birds/a", "data.root=../birds/a"),
        ("data.root=https://host/birds/a", "data.root=https://host/birds/a"),
        ("from=hf://owner/birds@0123", "from=hf://owner/birds@0123"),
    ],
)
def test_a_card_tells_the_command_without_the_folders_of_its_paths(typed, shown, monkeypatch):
    monkeypatch.delenv(CONFIG_DIR, raising=False)
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "ldm.train", typed])
    assert f"\npython -m ldm.train {shlex.quote(shown)}\n" in model_card(CONFIG)


def test_a_path_in_the_working_folder_is_shown_relative_to_it_and_others_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {
        "root": f"{tmp_path}/data/birds",
        "all": ["/home/me/a b/c.png", "a / b", 3],
        "url": "https://a/b",
    }
    shown = {"root": "data/birds", "all": [".../c.png", "a / b", 3], "url": "https://a/b"}
    assert published(found) == shown
    assert published(f"data.root={tmp_path}2/x out=/home/me/y") == "data.root=.../y"  # no path in the folder
    assert published("- /home/me/x\n- a: '/home/me/y'") == "- .../x\n- a: '.../y'"


def test_a_card_tells_the_users_own_config_folder_by_its_name(monkeypatch):
    monkeypatch.setenv(CONFIG_DIR, "/secret/own")
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "ldm.train"])
    text = model_card(CONFIG)
    assert "python -m ldm.train --config-dir=.../own" in text
    assert "secret" not in text


def test_an_import_is_named_without_its_folders():
    text = model_card(CONFIG | {"origin": {"imported_from": "/home/me/models/v1-5.safetensors"}})
    assert "imported from v1-5.safetensors" in text
    assert "/home/me" not in text
    text = model_card(CONFIG | {"origin": {"imported_from": "hf://owner/name@0123"}})
    assert "imported from hf://owner/name@0123" in text


@pytest.mark.parametrize("forged", ["x\n---\nlicense: mit", "<script>", "a](http://b)", "`rm`"])
def test_what_strangers_wrote_into_a_bundle_is_text_in_its_card(forged):
    text = model_card(CONFIG | {"origin": {"experiment": forged, "commit": forged, "data": {"name": forged}}})
    assert front(text) == front(model_card(CONFIG))
    assert forged not in text


@pytest.mark.parametrize("entry", [5, None, "text", []])
def test_an_origin_that_is_no_mapping_is_an_unknown_one(entry):
    assert "# Imported weights" in model_card(CONFIG | {"origin": entry, "codec_origin": entry})


ROW = {"set": "train", "metric": "fid", "value": 12.345, "sd": 0.5, "images": 300, "few": True, "floor": 9}
RESULTS = {
    "bundle": {"sha256": "?"},
    "protocol": {"name": "quick", "hash": "ab" * 32},
    "provenance": {"commit": "cd" * 20},
    "rows": [ROW],
}


@pytest.mark.parametrize("place", PLACES)
def test_numbers_come_with_protocol_and_count(place, write_tiny_bundle, tmp_path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "run" / "bundle"))
    (bundle.path / place).resolve().parent.mkdir(exist_ok=True)
    document = RESULTS | {"bundle": {"sha256": bundle.sha256}}
    (bundle.path / place).write_text(json.dumps(document))
    text = model_card(bundle.config, results=results_of(bundle.path, bundle.sha256))
    assert "Protocol quick (`abababababab`), measured at commit cdcdcdcdcdcd" in text
    assert "| train/fid | 12.35 ± 0.5 | 300, too few | 9 |" in text


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '{"bundle": {"sha256": "of another"}}', "{", '{"bundle": 3}']
)
def test_numbers_of_another_bundle_are_passed_over(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    assert results_of(tmp_path, "0" * 64) is None


@pytest.mark.parametrize("rows", [None, 3, [{"set": "a"}], [{"value": "b"}]])
def test_rows_that_are_not_whole_break_no_card(rows):
    assert "## Numbers" in model_card(CONFIG, results={"rows": rows})
