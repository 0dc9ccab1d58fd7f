"""Facts about lists of prompts: what they may hold, and which file and line is named where they may not."""

import json

import pytest

from ldm import UserError
from ldm.sampling.jobs import COLUMNS, asked_lines, jobs_of, read_list

DEFAULTS = {"count": 1, "seed": 0, "negative": "", "image": None, "mask": None, "strength": None}


@pytest.fixture
def write(tmp_path):
    """`write(name, content)`: a list in a file."""

    def call(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return call


def fields(path):
    return [line.fields for line in read_list(path)]


def test_a_text_file_is_a_prompt_a_line_without_remarks_and_empty_lines(write):
    path = write("a.txt", "\ufeffred apple\r\n\n  # fruit\n a cat, with a hat \n${seed} # no remark")
    assert [(line.where, line.fields["prompt"]) for line in read_list(path)] == [
        (f"{path}, line 1", "red apple"),
        (f"{path}, line 4", "a cat, with a hat"),
        (f"{path}, line 5", "${seed} # no remark"),
    ]


def test_csv_and_jsonl_say_the_same(write, tmp_path):
    whole = {
        "prompt": 'red "apple", ripe',
        "negative": "green",
        "seed": 7,
        "count": 2,
        "image": "a.png",
        "mask": "b.png",
        "strength": 0.5,
        "scale": 3.0,
        "name": "apple",
    }
    assert whole.keys() == COLUMNS.keys()
    cells = ['"red ""apple"", ripe"', "green", "7", "2", "a.png", "b.png", "0.5", "3", "apple"]
    table = write("a.csv", f"{','.join(whole)}\n{','.join(cells)}\n\nplain,,,,,,,,\n")
    objects = write("a.jsonl", f"{json.dumps(whole)}\n\n" + '{"prompt": "plain", "seed": null}')
    files = {"image": str(tmp_path / "a.png"), "mask": str(tmp_path / "b.png")}
    assert fields(table) == fields(objects) == [whole | files, {"prompt": "plain"}]


def test_a_prompt_may_run_over_lines_of_a_csv_and_the_next_line_keeps_its_number(write):
    path = write("a.csv", 'prompt,seed\n"a\nb",1\nc,x\n')
    with pytest.raises(UserError, match=r"a\.csv, line 4: seed='x' must .* be a whole number"):
        jobs_of(read_list(path), defaults=DEFAULTS)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "\n# nothing\n", "holds no prompt"),
        ("a.csv", "", "a.csv, line 1: the column prompt is missing"),
        ("a.csv", "seed\n3\n", "a.csv, line 1: the column prompt is missing"),
        ("a.csv", "prompt,sed\na,3\n", "line 1: there is no column 'sed'; there are: prompt, negative"),
        ("a.csv", "prompt,prompt\na,b\n", "line 1: the column prompt comes twice"),
        ("a.csv", "prompt,seed\na,3\nb, c,4\n", "line 3: 3 cells under 2 columns"),
        (
            "a.csv",
            "prompt,seed\na,3.5\n",
            "line 2: seed='3.5' must lie between 0 and 2**63 - 1 and be a whole",
        ),
        ("a.csv", "prompt,scale\na,big\n", "line 2: scale='big' must be a finite number"),
        ("a.csv", 'prompt\n"a\n', "line 2: "),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2: it is no json"),
        ("a.jsonl", '["a"]', "line 1: it is no JSON object"),
        ("a.jsonl", "[" * 100_000, "line 1: it is nested more than 100 deep"),
        ("a.jsonl", '{"prompt": "a", "scale": 1' + "0" * 400 + "}", "line 1: scale=1000"),
        ("a.jsonl", '{"prompt": "a", "count": ' + "9" * 5000 + "}", "line 1: "),
        ("a.csv", "prompt,count\na," + "9" * 5000 + "\n", "line 2: count=9999"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: the key 'prompt' comes twice"),
        ("a.jsonl", '{"prompt": 7}', "line 1: prompt=7 is no text: write"),
        (
            "a.jsonl",
            '{"prompt": "a", "count": true}',
            "line 1: count=True pictures per prompt must be a whole number",
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "seed": 1.5}',
            "line 1: seed=1.5 must lie between 0 and 2**63 - 1 and be a whole",
        ),
        ("a.jsonl", '{"promt": "a"}', "line 1: there is no column 'promt'"),
        ("a.txt", b"fine\nna\x92ve\n", "line 2: it is no UTF-8 text"),
        ("a.txt", "a\n".encode("utf-16"), "a.txt is UTF-16: save it as UTF-8"),
    ],
)
def test_a_line_that_can_not_be_read_is_named(write, name, content, sentence):
    with pytest.raises(UserError) as refused:
        jobs_of(read_list(write(name, content)), defaults=DEFAULTS)
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 500 + len(name)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"prompt": " "}, "prompt=' ' is empty"),
        ({"prompt": "x" * 10_001}, "a prompt of 10001 characters is too long"),
        ({"prompt": "\ud800"}, "contains an unpaired surrogate"),
        ({"prompt": "a", "scale": True}, "scale=True must be a finite number"),
        ({"prompt": "a", "image": 7}, "/7 is not there"),
        ({"prompt": "a", "name": ["x"]}, "name=['x'] is no text"),
        ({"prompt": "a", "seed": -1}, "seed=-1 must lie between"),
        ({"prompt": "a", "seed": 2**80}, "must lie between 0 and 2**63 - 1"),
        ({"prompt": "a", "seed": 2**63 - 1, "count": 2}, "must lie between 0 and 2**63 - 1"),
        ({"prompt": "a", "count": 0}, "count=0 pictures per prompt"),
        ({"prompt": "a", "count": 10**9}, "at least 1, and at most 100000 pictures in all"),
        ({"prompt": "a", "scale": float("inf")}, "scale=inf is no finite number"),
        ({"prompt": "a", "strength": 0.5}, "mask and strength need a source picture"),
        ({"prompt": "a", "image": "missing.png"}, "missing.png is not there"),
        ({"prompt": "a", "image": ".", "strength": 1.5}, "holds no picture"),
        ({"prompt": "a", "name": "../a"}, "name='../a' can't be a file's"),
        ({"prompt": "a", "name": "sheet"}, "name='sheet' can't be a file's"),
        ({"prompt": "a", "name": "é" * 60}, "a name of 120 bytes is too long"),
    ],
)
def test_a_field_that_can_not_be_is_refused_with_its_file_and_line(write, line, sentence):
    path = write("a.jsonl", "\n".join([json.dumps({"prompt": "fine"}), json.dumps(line)]))
    with pytest.raises(UserError) as refused:
        jobs_of(read_list(path), defaults=DEFAULTS)
    assert f"{path}, line 2: " in str(refused.value)
    assert sentence in str(refused.value)


def test_each_line_has_as_many_pictures_as_it_says_with_seeds_from_its_own_on(write):
    path = write("a.csv", "prompt,seed,count,name,negative\na,,,,\nb,7,3,bee,hats\nc,5,,,\n")
    jobs = jobs_of(read_list(path), defaults=DEFAULTS | {"count": 2, "seed": 40, "negative": "fog"})
    assert [(job.name, job.prompt, job.seed, job.negative) for job in jobs] == [
        ("0000", "a", 40, "fog"),
        ("0001", "a", 41, "fog"),
        ("bee", "b", 7, "hats"),
        ("bee_1", "b", 8, "hats"),
        ("bee_2", "b", 9, "hats"),
        ("0005", "c", 5, "fog"),
        ("0006", "c", 6, "fog"),
    ]


def test_two_pictures_of_one_name_are_refused(write):
    path = write("a.csv", "prompt,name\na,x\nb,x\n")
    with pytest.raises(ValueError, match="two pictures have name='x'"):
        jobs_of(read_list(path), defaults=DEFAULTS)


def test_every_prompt_is_drawn_from_every_picture_of_a_folder(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    lines = asked_lines(["x", "y"])
    jobs = jobs_of(lines, defaults=DEFAULTS | {"count": 2, "image": str(tmp_path)})
    assert [(job.prompt, job.image.name, job.seed) for job in jobs] == [
        (prompt, picture, seed) for prompt in "xy" for picture in ("a.JPG", "b.png") for seed in (0, 1)
    ]


def test_the_strength_is_that_of_the_task_unless_one_is_said(tmp_path):
    picture = tmp_path / "a.png"
    picture.touch()

    def strength(**said):
        (job,) = jobs_of(asked_lines("x"), defaults=DEFAULTS | {"image": picture} | said)
        return job.used_strength

    assert (strength(), strength(mask=picture), strength(mask=picture, strength=0.0)) == (0.6, 1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a cat\r\r\na dog\r"),
        ("a.csv", "\ufeffprompt;seed\r\ra cat;1\r;\ra dog;\r"),
        ("a.csv", "prompt\tseed\na cat\t1\n\na dog\t\n"),
        ("a.jsonl", '{"prompt": "a cat"}\r{"prompt": "a dog"}\r'),
    ],
)
def test_line_ends_marks_and_delimiters_are_those_of_captions(write, name, content):
    lines = read_list(write(name, content))
    assert [line.fields["prompt"] for line in lines] == ["a cat", "a dog"]


def test_a_quote_that_does_not_close_is_named_by_all_its_lines(write):
    path = write("a.csv", 'prompt,seed\n"a,1\nb,2\n"c" d,3\n')
    with pytest.raises(ValueError, match=r"a\.csv, lines 2 to 4: a quote opens a field in line 2 and closes"):
        read_list(path)


def test_what_ends_like_a_list_is_one_and_must_be_there(write, tmp_path):
    assert asked_lines(str(write("a.TXT", "x"))) == [(f"{tmp_path / 'a.TXT'}, line 1", {"prompt": "x"})]
    assert asked_lines("a txt") == [("", {"prompt": "a txt"})]
    assert asked_lines(["a.txt"]) == [("", {"prompt": "a.txt"})]
    with pytest.raises(UserError, match=r"there is no file prompts=.*if it is a prompt, write prompts=\["):
        asked_lines(str(tmp_path / "b.csv"))


def test_a_picture_whose_name_is_too_long_for_any_disk_is_not_there(write):
    lines = read_list(write("a.csv", f"prompt,image\na hat,{'x' * 5000}\n"))
    with pytest.raises(UserError, match=r"a.csv, line 2: image=.* is not there"):
        jobs_of(lines, defaults=DEFAULTS)
