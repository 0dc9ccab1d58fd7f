"""Facts about the forms in which Flickr30k is met: all of them give the same set."""

import json
import shutil
from runpy import run_path

import pytest

from benchmarks.faults.captions import bar_file
from benchmarks.faults.world import NUM_PICTURES, caption, name_of, wrong_pairs
from data_prep import flickr30k
from data_prep.command_line import help_of
from data_prep.reports import read_report
from ldm.data import DataError
from ldm.data.shards import ShardReader

KEYS = [f"p{n:02d}" for n in range(NUM_PICTURES)]


def comma_file() -> str:
    rows = [f'{name_of(n)},{order},"{caption(n, order)}"' for n in range(NUM_PICTURES) for order in (0, 1)]
    return "\n".join(["image_name, comment_number, comment", *rows])


def karpathy_file() -> str:
    images = [
        {
            "filename": name_of(n),
            "split": "train" if n < 12 else "val" if n < 14 else "test",
            "sentences": [{"raw": caption(n, order)} for order in (0, 1)],
        }
        for n in range(NUM_PICTURES)
    ]
    return json.dumps({"images": images, "dataset": "flickr30k"})


FORMS = {
    "results.csv": bar_file(),
    "results.csv with spaces": bar_file().replace(
        "image_name| comment_number| comment", " image_name | c | c "
    ),
    "results.csv without header": bar_file().split("\n", 1)[1],
    "captions.txt": comma_file(),
    "dataset_flickr30k.json": karpathy_file(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_captions_gives_the_same_shards(source, prepare, form):
    tokens = prepare("tokens", split="random")
    (source / "results_20130124.token").unlink()
    (source / form.split(" ")[0]).write_text(FORMS[form])
    assert prepare("other", split="random").sha256 == tokens.sha256
    assert wrong_pairs(tokens.root) == 0


@pytest.mark.parametrize("layout", ["", "flickr30k_images", "flickr30k_images/flickr30k_images"])
def test_pictures_are_found_where_distributions_put_them(source, prepare, layout):
    plain = prepare("plain")
    if layout:
        (source / layout).parent.mkdir(exist_ok=True)
        (source / "flickr30k-images").rename(source / layout)
    else:
        for path in (source / "flickr30k-images").iterdir():
            shutil.move(path, source)
    assert prepare("moved").sha256 == plain.sha256


def test_a_record_has_what_the_distribution_says(prepare):
    record = ShardReader(prepare(split="random"), split="train").record(0)
    number = int(record["key"][1:])
    assert record == {
        "key": f"p{number:02d}",
        "texts": [caption(number, 0), caption(number, 1)],
        "comment_nos": [0, 1],
        "image": name_of(number),
        "width": 40,
        "height": 40,
    }


def test_karpathys_splits_are_taken_from_his_json_and_from_lists_alike(source, prepare):
    (source / "dataset_flickr30k.json").write_text(karpathy_file())
    by_json = prepare("json")
    assert {s: ShardReader(by_json, split=s).keys() for s in ("val", "test")} == {
        "val": KEYS[12:14],
        "test": KEYS[14:],
    }
    (source / "dataset_flickr30k.json").unlink()
    for split, numbers in (("train", range(12)), ("val", range(12, 14)), ("test", range(14, 16))):
        (source / f"karpathy_{split}.txt").write_text("\n".join(name_of(n) for n in numbers))
    assert prepare("lists").sha256 == by_json.sha256


def test_the_split_of_one_set_can_be_given_to_another(prepare, tmp_path):
    first = prepare("first", seed=5, val_share=0.25)
    again = prepare("again", split_from=str(tmp_path / "first" / "splits.json"), resolution=8)
    assert [(shard.split, shard.keys) for shard in first.shards] == [
        (shard.split, shard.keys) for shard in again.shards
    ]


def test_pictures_in_no_list_are_left_out_and_named(source, prepare):
    (source / "train.txt").write_text("\n".join(KEYS[:10]))
    index = prepare()
    assert sum(shard.count for shard in index.shards) == 10
    assert read_report(index.root)["in_no_split"] == [name_of(n) for n in range(10, 16)]


def test_the_row_of_kaggle_whose_second_bar_is_missing_is_healed(source, prepare):
    (source / "results_20130124.token").unlink()
    rows = bar_file().replace("p03.jpg| 1| picture", "p03.jpg| 1   picture")
    (source / "results.csv").write_text(rows)
    report = read_report(prepare().root)
    assert report["healed"] == {"missing second |": ["results.csv:9"]}
    assert report["written"]["captions"] == 2 * NUM_PICTURES


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source": ""}, "source= is missing"),
        ({"source": "nowhere"}, "source=nowhere is no folder"),
        ({"captions": "nowhere.csv"}, r"captions=nowhere\.csv is no file"),
        ({"resolution": -1}, "resolution=-1 must be 0"),
        ({"val_share": 0.6, "test_share": 0.4}, "leave some to train on"),
        ({"split": "kaparthy"}, "split=kaparthy is unknown"),
        ({"max_skip_share": 2.0}, "must lie between 0 and 1"),
    ],
)
def test_options_that_can_not_be_are_refused_before_anything_is_written(prepare, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        prepare(**options)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pictures_or_captions_is_refused(source, tmp_path):
    with pytest.raises(DataError, match=r"no captions there; expected results_20130124\.token"):
        flickr30k.collect(source / "flickr30k-images")
    with pytest.raises(DataError, match="no pictures there"):
        flickr30k.collect(tmp_path / "source" / "..", str(source / "results_20130124.token"))


def test_the_command_answers_help_and_mistakes(source, monkeypatch, capsys):
    assert "max_skip_share=NUMBER" in help_of(flickr30k.Options)
    monkeypatch.setattr("sys.argv", ["flickr30k", f"source={source}", "resolutoin=64"])
    with pytest.raises(SystemExit) as ended:
        run_path(flickr30k.__file__, run_name="__main__")
    sentence = "ldm: there is no option 'resolutoin', did you mean 'resolution'?\n"
    assert (ended.value.code, capsys.readouterr().err) == (1, sentence)
