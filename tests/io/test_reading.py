"""Facts about files that a stranger wrote: each absurd one costs a sentence, and little work."""

import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from ldm.evaluation.reference_statistics import MAX_ARRAYS, read_arrays
from ldm.io.reading import (
    MAX_JSON,
    MAX_NESTING,
    MAX_YAML,
    is_plain_name,
    parse_array,
    parse_json,
    read_json,
    read_yaml,
)

DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * DEEP, "it is nested more than 100 deep"),
        ('{"a":' * DEEP, "it is nested more than 100 deep"),
        ("[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1), "it is nested more than 100 deep"),
        ('{"a": NaN}', "a=nan is no finite number"),
        ('{"a": [1, -Infinity]}', "a=-inf is no finite number"),
        ('{"a": 1e400}', "a=inf is no finite number"),
        ('{"a": ' + "9" * 400 + "}", "a=99999999999999999999... has more than 32 digits"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
        ('{"a": "\\ud800"}', r"a='\\ud800' contains an unpaired surrogate or a null byte"),
        ('{"\\u0000": 1}', r"'\\x00' contains an unpaired surrogate or a null byte"),
        ("{", "it is no json"),
        ("", "it is no json"),
        (b"\xff\xff", "decode"),
    ],
)
def test_json_that_is_absurd_is_refused_in_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        parse_json(text, name="the file")
    assert str(refusal.value).startswith("the file: ")
    assert len(str(refusal.value)) < 300


def test_a_key_among_a_million_comes_twice_and_is_found_in_one_pass():
    keys = [f'"{number}": 0' for number in range(100_000)]
    with pytest.raises(ValueError, match="the key '99999' comes twice"):
        parse_json("{" + ",".join([*keys, '"99999": 1']) + "}", name="it")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * DEEP, "it is nested more than 100 deep"),
        ("- " * DEEP, "it is nested more than 100 deep"),
        ("a: .nan", "a=nan is no finite number"),
        ("a: -.inf", "a=-inf is no finite number"),
        ("a: " + "9" * 400, "a=99999999999999999999... has more than 32 digits"),
        ("a: " + "9" * 5000, "digits"),
        ("a: 1\na: 2", "the key 'a' comes twice"),
        ("? [a]\n: 1", "a key is a list"),
        ("a: &x [*x]", "an alias that stands for itself"),
        ("a: 2020-01-01", "a=2020-01-01 is a date"),
        ("a: !!binary AAAA", "a=.* is a bytes"),
        ('a: "\\0"', "null byte"),
        ("a: !!python/object/apply:os.system [touch canary]", "it is no yaml"),
        ("a: [", "it is no yaml"),
        ("a: " + "x" * MAX_YAML, "it has more than 262144 bytes"),
    ],
)
def test_yaml_that_is_absurd_is_refused_in_a_sentence(tmp_path, monkeypatch, text, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence) as refusal:
        read_yaml(tmp_path / "a.yaml")
    assert "a.yaml: " in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_that_stand_for_billions_are_counted_not_followed(tmp_path, form):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} " + form.format(", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 40)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="it has more than 100000 entries"):
        read_yaml(tmp_path / "a.yaml")


def test_an_alias_of_our_own_writer_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: *x\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_file_beyond_the_limit_is_not_read_whole(tmp_path):
    with (tmp_path / "a.json").open("wb") as stream:
        stream.truncate(100 * MAX_JSON)  # a file of holes: no bytes on the disk
    tracemalloc.start()
    with pytest.raises(ValueError, match="it has more than 67108864 bytes"):
        read_json(tmp_path / "a.json")
    assert tracemalloc.get_traced_memory()[1] < 3 * MAX_JSON
    tracemalloc.stop()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_json(tmp_path / "a.json")


def npy(shape: tuple[int, ...], *, dtype: str = "<f8", data: bytes = b"") -> bytes:
    """An npy file that claims a shape, and its bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (npy((2**40,)), "it claims 8796093022208 bytes and has 0"),
        (npy((2**20, 2**20), data=bytes(80)), "it claims 8796093022208 bytes and has 80"),
        (npy((-1, -8), data=bytes(64)), "is no array of numbers"),
        (npy((1,), dtype="|O", data=bytes(8)), "is no array of numbers"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "is no array of numbers"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "is no array of numbers"),
        (b"", "is no array of numbers"),
    ],
)
def test_an_array_is_what_its_header_claims_or_a_sentence(tmp_path, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_array(data, name="it")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("mu.npy", data)
    with pytest.raises(ValueError, match=f"a.npz is no npz file of numbers .array 'mu'.*{sentence}"):
        read_arrays(tmp_path / "a.npz")


def test_a_zip_of_more_than_the_limit_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            with archive.open(f"{number}.npy", "w") as entry:
                entry.write(bytes(2**20))
    told, forged = (size.to_bytes(4, "little") for size in (2**20, MAX_ARRAYS))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes().replace(told, forged))
    with pytest.raises(ValueError, match="its arrays take more than 536870912 bytes"):
        read_arrays(tmp_path / "a.npz")


def test_arrays_come_back_as_they_were_written(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", mu=np.arange(3.0), count=np.array(7))
    read = read_arrays(tmp_path / "a.npz")
    assert read["mu"].tolist() == [0, 1, 2]
    assert read["count"] == 7


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "a/b", "a\\b", "a\0", None, 3])
def test_a_name_leads_nowhere_but_into_its_folder(name):
    assert not is_plain_name(name)


def test_plain_data_is_read(tmp_path):
    value = {"a": [1, 2.5, True, None, "ü", {"b": []}], "n": 10**31, "😀": "\\u0000"}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json") == value
