"""Facts about reading tables and captions: one set of rules for preparation and streaming."""

import csv
import io

import pytest

from benchmarks.faults.tars import pack
from benchmarks.faults.world import encoded, flat
from data_prep import webdataset
from ldm.data import DataError
from ldm.data.streaming import captions
from ldm.data.tars import read_samples, sample_captions, usable_caption
from ldm.data.texts import numbered_lines, read_table, read_text


@pytest.fixture
def table(tmp_path):
    """`table(content, name)`: the form, header and rows of a table in a file."""

    def read(content, name="c.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        found = read_table(path)
        return found.form, found.header.cells, [row.cells for row in found.rows]

    return read


ROWS = [["a", "one"], ["b", "two"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "c.csv"), (";", "c.csv"), ("\t", "c.csv"), ("\t", "c.tsv")]
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiter_line_end_and_byte_order_mark_change_nothing(table, end, delimiter, name, mark):
    lines = [delimiter.join(cells) for cells in [["image", " caption "], *ROWS]]
    form, header, rows = table(mark + end.join([*lines, ""]), name)
    assert (header, rows) == (["image", "caption"], ROWS)
    assert form.startswith(f"columns by {delimiter!r}")


def test_lines_end_nowhere_but_at_line_ends():
    text = "a\u2028b\x85c\x0bd\r\n \r\ne\rf"
    assert list(numbered_lines(text)) == [(1, "a\u2028b\x85c\x0bd"), (3, "e"), (4, "f")]


def test_a_table_with_tabs_has_quoting_only_if_all_of_it_has(table):
    text = 'image\tcaption\na\t"a dog\nb\ta cat\nc\ta "cow"\nd\ta hen"\n'
    form, _, rows = table(text, "c.tsv")
    assert [cells[1] for cells in rows] == ['"a dog', "a cat", 'a "cow"', 'a hen"']
    assert "quotes as plain characters" in form
    swallowing = 'image\tcaption\na\t"a dog\nb\ta hen"\n'  # csv would read one row of it
    assert [cells[1] for cells in table(swallowing, "c.tsv")[2]] == ['"a dog', 'a hen"']


def test_a_table_with_tabs_that_a_csv_writer_wrote_is_read_back(table):
    rows = [["image", "caption"], ["a", 'a "cow"'], ["b", "two\nlines"], ["c", "a\ttab"]]
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t").writerows(rows)
    assert table(stream.getvalue(), "c.tsv")[1:] == (rows[0], rows[1:])


@pytest.mark.parametrize("content", ['a,"one\nb,two\nc,"three" x\n', 'a,"one\nb,two\nc,three\n'])
def test_quotes_that_do_not_pair_up_are_named_by_all_their_lines(table, content):
    with pytest.raises(DataError, match=r"lines 2 to 4: a quote opens .* line 2 .*inside it twice \(\"\"\)"):
        table(f"image,caption\n{content}")


SWALLOWING = {
    "last": 'image,caption\np0.jpg,one\np1.jpg,"a cat\np2.jpg,two, too\np3.jpg,a hen"\n',
    "first": 'caption;image\n"a cat;p1.jpg\na hen";red dog.PNG\n',
    "middle": 'key,caption,n\n101,one,1\n102,"a cat,2\n103,a hen",3\n',
    "own picture": 'image,number,caption\np1.jpg,0,"a cat\np1.jpg,1,a hen"\n',
}


@pytest.mark.parametrize("name", SWALLOWING)
def test_a_stray_quote_that_closes_lines_later_takes_no_other_row_for_a_caption(table, name):
    with pytest.raises(DataError, match=r"c\.csv, lines \d to \d: the quoted field .* holds another row"):
        table(SWALLOWING[name])


@pytest.mark.parametrize("caption", ["a cat\nand a dog, too", "1. red, 2. green\n3. blue, 4. grey"])
def test_a_caption_of_several_lines_with_commas_is_no_row(table, caption):
    for key in ("image", "key"):
        rows = [["p0.jpg" if key == "image" else "7", "one"], ["p1.jpg" if key == "image" else "8", caption]]
        stream = io.StringIO()
        csv.writer(stream).writerows([[key, "caption"], *rows])
        assert table(stream.getvalue())[2] == rows


def test_utf_16_is_refused_and_other_bytes_stay_recognisable(tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\xe9".encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.txt is UTF-16: save it as UTF-8"):
        read_text(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8"):
        usable_caption(read_text(tmp_path / "a.txt"))


TEXTS = {
    "mark": ({"txt": b"\xef\xbb\xbfa red car\r\n"}, ["a red car"]),
    "lines": ({"txt": b"line one\nline two"}, ["line one line two"]),
    "both": ({"txt": b"cap", "json": b'{"texts": ["one", "two"], "caption": "zz"}'}, ["one", "two"]),
    "windows": ({"txt": b"line one\r\nline two\r\n"}, ["line one line two"]),
    "below 0": ({"json": b'{"texts": ["one", "two"], "comment_nos": [-1, -2]}'}, ["one", "two"]),
    "repeated": ({"json": b'{"texts": ["one", "one"], "comment_nos": [3, 3]}'}, ["one"]),
    "numbers": ({"json": b'{"texts": ["one", "two"], "comment_nos": [1, 0]}'}, ["two", "one"]),
    "caption": ({"json": b'\xef\xbb\xbf{"caption": "c"}'}, ["c"]),
    "txt first": ({"txt": b"t", "json": b'{"caption": "c"}'}, ["t"]),
    "damaged json": ({"txt": b"t", "json": b"["}, ["t"]),
    "no texts": ({"txt": b"t", "json": b'{"texts": []}'}, ["t"]),
    "one of two": ({"json": b'{"texts": [3, " ", "x"]}'}, ["x"]),
    "long": ({"txt": b"x" * 20_000}, ["x" * 10_000]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_streamed_reader_gives_what_the_preparation_gives(tmp_path, name):
    members, expected = TEXTS[name]
    tar = tmp_path / "0.tar"
    tar.write_bytes(
        pack([("a.png", encoded(flat(1), "PNG")), *((f"a.{kind}", data) for kind, data in members.items())])
    )
    (streamed,) = read_samples(str(tar))
    (prepared,) = webdataset.collect([tar]).entries
    assert captions(streamed) == prepared.texts == expected
    assert len(sample_captions(streamed)) >= len(expected)
