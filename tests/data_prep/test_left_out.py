"""Facts about captions and pictures that do not meet: matched where one picture can be meant, else named."""

import json
from collections import Counter

import pytest

from benchmarks.faults.tars import pack
from benchmarks.faults.world import NUM_PICTURES, caption, name_of, write_pictures
from data_prep import folder, webdataset
from data_prep.emoji import draw_validation
from data_prep.pairing import match_names
from data_prep.reports import read_report
from data_prep.splits import draw_splits, find_lists, read_splits
from ldm.data import DataError
from ldm.data.index import ShardIndex
from ldm.data.shards import ShardReader
from ldm.data.tars import read_samples

PICTURES = {"i/p0.jpg", "i/p1.jpg", "i/p2.png", "i/p2.jpg", "j/p0.jpg", "q.jpg"}


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures" / "i")
    return tmp_path / "pictures"


@pytest.fixture
def prepared(pictures, tmp_path):
    """`prepared(table, **options)`: the set of those pictures with the captions of a csv."""

    def run(table: str, **options) -> ShardIndex:
        (tmp_path / "c.csv").write_text(table)
        defaults = {"source": str(pictures), "captions": str(tmp_path / "c.csv"), "num_workers": 0}
        folder.main(folder.Options(out=str(tmp_path / "out"), **(defaults | options)))
        return ShardIndex.load(tmp_path / "out")

    return run


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("/data/flickr/i/p0.jpg", "i/p0.jpg"),
        ("flickr/i/p1.jpg", "i/p1.jpg"),
        ("./i/p0.jpg", "i/p0.jpg"),
        (".\\i\\p0.jpg", "i/p0.jpg"),
        ("C:\\data\\i\\p0.jpg", "i/p0.jpg"),
        ("i/p0", "i/p0.jpg"),
        ("/data/i/p0", "i/p0.jpg"),
        ("p1.jpg", "i/p1.jpg"),
        ("p1", "i/p1.jpg"),
        ("p0.jpg", None),
        ("i/p2", None),
        ("1.jpg", None),
        ("/data/k/p1.jpg", None),
        ("../../etc/passwd", None),
        ("", None),
    ],
)
def test_a_name_matches_the_one_picture_that_it_can_mean(name, picture):
    assert match_names([name], PICTURES)[0] == ({name: picture} if picture else {})


def test_names_that_could_mean_one_picture_match_none_and_exact_names_come_first():
    assert match_names(["/a/q.jpg", "/b/q.jpg"], PICTURES) == ({}, [])
    assert match_names(["q.jpg", "/b/q.jpg"], PICTURES) == ({}, [])
    assert match_names(["q.jpg"], PICTURES) == ({}, [])


def test_the_start_that_is_dropped_is_the_same_for_all_names():
    pictures = ["1.jpg", "2.jpg", "3.jpg"]
    tie = ["train/1.jpg", "train/2.jpg", "test/1.jpg", "test/3.jpg"]
    assert match_names(tie, pictures)[0] == {}
    found = {"train/1.jpg": "1.jpg", "train/2.jpg": "2.jpg"}
    assert match_names([*found, "test/3.jpg"], pictures)[0] == found


NAMES = {
    "/data/flickr/i/{}": "16 names matched by the end of the path: i/p00.jpg for .../p00.jpg",
    "{}": "16 names matched by the file in its folder: i/p00.jpg for p00.jpg",
}


@pytest.mark.parametrize("form", NAMES)
def test_a_table_of_other_paths_is_matched_and_the_rule_is_said(prepared, form, tmp_path):
    rows = [f"{form.format(name_of(n))},{caption(n)},0.0\n" for n in range(NUM_PICTURES)]
    index = prepared("image,caption,n\n" + "".join(rows), number="n")
    assert Counter({shard.split: shard.count for shard in index.shards}) == {"train": 14, "val": 1, "test": 1}
    record = ShardReader(index, split="val").record(0)
    assert record["texts"] == [caption(int(record["key"][-2:]))]
    report = read_report(tmp_path / "out")
    assert NAMES[form] in report["source"]["forms"]
    assert report["counts"]["healed"] == {"number written with .0": 16}


def test_a_table_with_tabs_and_stray_quotes_says_how_it_is_read(pictures, prepared, tmp_path):
    rows = [f'i/{name_of(n)}\t"{caption(n)}\n' for n in range(NUM_PICTURES)]
    record = ShardReader(prepared("image\tcaption\n" + "".join(rows)), split="val").record(0)
    assert record["texts"] == [f'"{caption(int(record["key"][-2:]))}']
    form = read_report(tmp_path / "out")["source"]["forms"][0]
    assert form.endswith(r"c.csv (columns by '\t', quotes as plain characters)")


@pytest.mark.parametrize(("options", "kept"), [({"number": "n"}, 1), ({}, 2)])
def test_a_row_that_is_there_twice_is_left_out_if_rows_have_numbers(prepared, options, kept):
    rows = [f"i/{name_of(n)},{caption(n)},0\n" for n in range(NUM_PICTURES)]
    index = prepared("image,caption,n\n" + "".join(rows) * 2, max_skip_share=0.5, **options)
    number = int((record := ShardReader(index, split="val").record(0))["key"][-2:])
    assert record["texts"] == [caption(number)] * kept


def test_two_columns_of_captions_are_two_captions(prepared):
    rows = [f"i/{name_of(n)},{caption(n, 0)},{caption(n, 1)}\n" for n in range(NUM_PICTURES)]
    record = ShardReader(prepared("image,caption,caption\n" + "".join(rows)), split="val").record(0)
    number = int(record["key"][-2:])
    assert record["texts"] == [caption(number, 0), caption(number, 1)]


@pytest.mark.parametrize("limit", [0.001, 1.0])
def test_if_nothing_is_left_the_reason_and_one_of_each_side_are_named(prepared, tmp_path, limit):
    rows = [f"/x/a{n}.jpg,{caption(n)}\n" for n in range(4)]
    sentence = (
        r"20 of 20 pictures are left out, most as 'picture without captions' \(the captions name"
        r" /x/a0.jpg, the folder has i/p00.jpg\), and no picture with captions is left; .*report.json names"
    )
    with pytest.raises(DataError, match=sentence):
        prepared("image,caption\n" + "".join(rows), max_skip_share=limit)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["pictures_left_out"]["captions without a picture"]) == 4
    assert report["complete"] is False
    assert not (tmp_path / "out" / "shards.json").exists()


def test_a_complete_set_and_its_report_outlive_a_source_of_which_nothing_is_left(prepared, tmp_path):
    rows = [f"i/{name_of(n)},{caption(n)}\n" for n in range(NUM_PICTURES)]
    prepared("image,caption\n" + "".join(rows))
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}
    with pytest.raises(DataError, match="holds a complete set of another source"):
        prepared("image,caption\nx,y\n")
    assert {path: path.read_bytes() for path in before} == before


def test_a_tar_of_dotted_names_says_where_a_key_ends(tmp_path):
    names = [f"photo.{n}{end}" for n in range(6) for end in (".jpg", ".txt")]
    (tmp_path / "00000.tar").write_bytes(pack([(name, b"x") for name in names]))
    reason = "a key ends at the first dot"
    options = webdataset.Options(source=str(tmp_path), out=str(tmp_path / "out"), num_workers=0)
    with pytest.raises(
        DataError, match=rf"6 of 6 .*{reason}' \(00000.tar: photo\.0\.jpg is part '0\.jpg' of 'photo'\)"
    ):
        webdataset.main(options)
    assert len(read_report(tmp_path / "out")["pictures_left_out"][reason]) == 6
    with pytest.raises(DataError, match=rf"{reason}: photo\.0\.jpg is part"):
        list(read_samples(str(tmp_path / "00000.tar")))


def test_pictures_beside_that_of_a_sample_leave_nothing_out(tmp_path):
    parts = [("0.jpg", b"x"), ("0.mask.png", b"x"), ("0.txt", b"a"), ("1.mask.png", b"x")]
    (tmp_path / "0.tar").write_bytes(pack(parts))
    collection = webdataset.collect([tmp_path / "0.tar"])
    assert [entry.name for entry in collection.entries] == ["0.jpg"]
    assert collection.tally.pictures == {
        "a key ends at the first dot": ["0.tar: 1.mask.png is part 'mask.png' of '1'"]
    }


def test_a_pattern_of_tars_that_cannot_be_is_refused_at_once():
    for pattern in ("{0..9999999999}.tar", "a{.tar}{", "{1..2"):
        with pytest.raises(DataError, match=r"stand for more than|Unbalanced|is no file"):
            webdataset.find_tars(pattern)


LISTS = {"my p0.jpg\nb.v1\n": ["my_p0", "b_v1"], "a, b.PNG\ni/c.webp\n": ["a__b", "i/c".replace("/", "_")]}


@pytest.mark.parametrize("text", LISTS)
def test_names_in_split_lists_may_have_blanks_and_dots(tmp_path, text):
    (tmp_path / "train.txt").write_text(text)
    assert list(read_splits(tmp_path)) == LISTS[text]


@pytest.mark.parametrize("line", ["p0.jpg a dog", "p0.jpg,a.jpg", "p0|0| a dog", "p0,0"])
def test_a_table_is_no_split_list(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match="one name a line"):
        read_splits(tmp_path)


def test_hidden_files_and_captions_beside_pictures_are_no_split_lists(tmp_path):
    for name in (".train.txt", "._val.txt", "test.jpg", "test.txt"):
        (tmp_path / name).write_text("a red car")
    assert find_lists([tmp_path]) == []
    (tmp_path / "val.txt").write_text("test")
    assert find_lists([tmp_path]) == [tmp_path / "val.txt"]


def test_lists_that_name_no_picture_to_train_on_are_refused_with_one_of_each_side(prepared, pictures):
    rows = [f"i/{name_of(n)},{caption(n)}\n" for n in range(NUM_PICTURES)]
    (pictures / "train.txt").write_text("other\n")
    with pytest.raises(
        DataError, match=r"none of its 16 pictures is in .* train .* other, .* i_p00: .*random"
    ):
        prepared("image,caption\n" + "".join(rows))


@pytest.mark.parametrize(
    ("number", "shares", "numbers"),
    [
        (0, (0.03, 0.03), (0, 0, 0)),
        (1, (0.9, 0.05), (1, 0, 0)),
        (2, (0.03, 0.03), (1, 1, 0)),
        (2, (0.0, 0.03), (2, 0, 0)),
        (3, (0.03, 0.03), (1, 1, 1)),
        (3, (0.6, 0.3), (1, 1, 1)),
        (8, (0.03, 0.03), (6, 1, 1)),
        (8, (0.03, 0.0), (7, 1, 0)),
        (16, (0.0, 0.0), (16, 0, 0)),
        (16, (0.25, 0.03), (11, 4, 1)),
        (17, (0.03, 0.03), (15, 1, 1)),
        (100, (0.03, 0.03), (94, 3, 3)),
        (1000, (0.1, 0.001), (899, 100, 1)),
    ],
)
def test_a_share_above_zero_gives_at_least_one_picture(number, shares, numbers):
    drawn = draw_splits([f"k{n}" for n in range(number)], val_share=shares[0], test_share=shares[1], seed=0)
    counted = Counter(drawn.values())
    assert tuple(counted[split] for split in ("train", "val", "test")) == numbers


def test_a_share_of_the_emoji_gives_at_least_one_and_leaves_one():
    assert [len(draw_validation(list("abcd"), share=share, seed=0)) for share in (0.001, 0.5, 0.99)] == [
        1,
        2,
        3,
    ]


def test_it_is_said_if_no_picture_is_left_to_validate_on(prepared, capsys):
    rows = [f"i/{name_of(n)},{caption(n)}\n" for n in range(NUM_PICTURES)]
    prepared("image,caption\n" + "".join(rows), val_share=0.0)
    assert "no picture is left to validate on; if some should be, write split=random val_share=0.05" in (
        capsys.readouterr().out
    )
