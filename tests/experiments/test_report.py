import copy
import json
import shutil

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.figures import draw_measured
from experiments.report import APART, FOLDER, Options, main, measured_section
from experiments.tables import literature_table, measured_table
from ldm.evaluation.published import PublishedRow, read_published
from ldm.evaluation.results import read_results
from ldm.loggers.wandb_log import wandb_logger

EMOJI = FOLDER / "emoji" / "results.json"


@pytest.fixture(scope="module")
def document():
    return read_results(EMOJI)


def fill(folder, document):
    """Writes two runs under one protocol and a third under another, each with four of the document's rows."""
    document = document | {"rows": [*document["rows"][:3], document["rows"][-1]]}
    for name, digest in (("first", "a" * 64), ("second", "a" * 64), ("other", "b" * 64)):
        run = copy.deepcopy(document)
        run["protocol"] |= {"name": "tiny", "hash": digest}
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(json.dumps(run))
    return folder


@pytest.fixture
def folder(tmp_path, document):
    """Runs without an index."""
    return fill(tmp_path, document)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory, document):
    """Runs with their index; tests only read it."""
    folder = fill(tmp_path_factory.mktemp("experiments"), document)
    main(Options(folder=str(folder)))
    return folder


def table_under(text, heading):
    """The lines of the first table below a line."""
    lines = text[text.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rest = lines[start:]
    end = next((number for number, line in enumerate(rest) if not line.startswith("|")), len(rest))
    return rest[:end]


def test_a_table_holds_one_protocol(indexed):
    text = (indexed / "README.md").read_text()
    first, other = (table_under(text, f"Protocol `{digit * 12}`") for digit in "ab")
    assert {line.split(" | ")[1] for line in first[2:]} == {"first", "second"}
    assert {line.split(" | ")[1] for line in other[2:]} == {"other"}


def test_the_literature_stands_apart_under_two_sentences(indexed):
    text = (indexed / "README.md").read_text()
    assert APART.count(". ") == 1
    assert APART.endswith(".")
    assert text.index("## Measured here") < text.index("## Literature") < text.index(APART)
    literature = table_under(text, APART)
    published = read_published()
    assert [line.split(" | ")[0].removeprefix("| ") for line in literature[2:]] == [
        row.system for row in published
    ]
    measured = text[: text.index("## Literature")]
    assert not any(f"| {row.system} |" in measured for row in published)


def test_pictures_that_the_index_shows_exist_and_are_small(indexed):
    text = (indexed / "README.md").read_text()
    names = {f"tiny-{'a' * 12}.png", f"tiny-{'b' * 12}.png", "literature.png"}
    assert {path.name for path in (indexed / "figures").iterdir()} == names
    for name in names:
        assert f"(figures/{name})" in text
        assert (indexed / "figures" / name).stat().st_size < 200_000
        assert Image.open(indexed / "figures" / name).width > 700


def test_the_picture_of_a_protocol_that_is_gone_goes_too(indexed, tmp_path):
    folder = shutil.copytree(indexed, tmp_path / "experiments")
    shutil.rmtree(folder / "other")
    main(Options(folder=str(folder)))
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"tiny-{'a' * 12}.png",
        "literature.png",
    }


def test_sweeps_are_linked_and_an_experiments_curves_are_shown_in_its_section(folder):
    for name, text in (("steps", "# Sweep: steps\n\nmore"), ("untitled", "words")):
        (folder / "sweep" / name).mkdir(parents=True)
        (folder / "sweep" / name / "README.md").write_text(text)
    (folder / "sweep" / "steps" / "table.csv").write_text("a\n1\n")
    (folder / "sweep" / "steps" / "figure.png").write_text("")
    (folder / "other" / "curves").mkdir()
    for name in ("fd.svg", "fd.png", "old.png", "sweep.csv"):
        (folder / "other" / "curves" / name).write_text("")
    main(Options(folder=str(folder)))
    text = (folder / "README.md").read_text()
    sweeps = text[text.index("## Sweeps") : text.index("## Literature")]
    assert "| [Sweep: steps](sweep/steps/README.md) | [table.csv](sweep/steps/table.csv) |" in sweeps
    assert "| [untitled](sweep/untitled/README.md) |  |" in sweeps
    assert sweeps.endswith("\n\n![Sweep: steps](sweep/steps/figure.png)\n\n")
    section = text[text.index(f"Protocol `{'b' * 12}`") : text.index("## Sweeps")]
    for link in (
        "![other: fd](other/curves/fd.svg)",
        "![other: old](other/curves/old.png)",
        "(other/curves/sweep.csv)",
    ):
        assert link in section
    assert "fd.png" not in text


def test_without_sweeps_and_curves_there_is_no_word_of_them(indexed):
    text = (indexed / "README.md").read_text()
    assert "## Sweeps" not in text
    assert "curves" not in text[: text.index("## Literature")]


def test_the_index_is_the_same_each_time(indexed, folder):
    main(Options(folder=str(folder)))
    first, again = (
        [path.read_bytes() for path in sorted(each.rglob("*")) if path.is_file()]
        for each in (indexed, folder)
    )
    assert first == again


def test_the_index_that_is_committed_is_of_the_rows_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # ten figures take seconds
    shutil.copytree(FOLDER, tmp_path / "experiments")
    main(Options(folder=str(tmp_path / "experiments")))
    assert (tmp_path / "experiments" / "README.md").read_text() == (FOLDER / "README.md").read_text()


def test_a_measured_row_has_its_references_counts_and_seeds(document):
    run = copy.deepcopy(document)
    row = {"set": "train", "metric": "fd", "value": 470.125, "images": 300, "floor": 224.5, "ceiling": 270.0}
    run["rows"] = [row, {"set": "autoencoder", "metric": "psnr", "value": 30.0, "images": 164, "real": None}]
    run["sets"] = {"train": {"seeds": [5, 304]}}
    assert measured_table("m", {"tiny": run}).rows == [
        ["autoencoder/psnr", "tiny", "30", "none", "", "", "", "164", ""],
        ["train/fd", "tiny", "470.1", "none", "224.5", "270", "", "300", "5-304"],
    ]


def test_rows_are_in_the_order_of_names_and_never_of_values(document):
    worse, better = copy.deepcopy(document), document
    for row in worse["rows"]:
        row["value"] = row["value"] * 2 + 1
    cells = [
        [row[:2] for row in measured_table("m", runs).rows]
        for runs in ({"a": better, "b": worse}, {"a": worse, "b": better})
    ]
    assert cells[0] == cells[1] == sorted(cells[0])


def test_draws_and_counts_that_are_too_few_show_in_the_row(document):
    run = copy.deepcopy(document)
    run["rows"] = [run["rows"][0] | {"value": 12.0, "sd": 0.5, "seeds": 3, "images": 300, "few": True}]
    (row,) = measured_table("m", {"r": run}).rows
    assert (row[2], row[3], row[7]) == ("12 ± 0.5", "3 sampling seeds", "300, too few")
    run["rows"] = [run["rows"][0] | {"sd_trainings": 2.0, "trainings": 5}]
    (row,) = measured_table("m", {"r": run}).rows
    assert (row[2], row[3]) == ("12 ± 2", "5 training seeds; ± 0.5 over 3 sampling seeds")
    run["rows"] = [run["rows"][0] | {"sd_trainings": None, "sd": None, "per_caption": [[[11.0, 13.0] * 8]]}]
    (row,) = measured_table("m", {"r": run}).rows
    assert (row[2], row[3]) == ("12 ± 0.26", "16 captions")
    (row,) = measured_table("m", {"r": run | {"rows": [run["rows"][0] | {"foreign": True}]}}).rows
    assert row[0].endswith(" (reference of unknown preparation)")


def test_a_run_tells_what_its_numbers_cost(document):
    run = copy.deepcopy(document)
    for row in run["rows"]:
        row |= {"nfe": 50, "params": 6_490_000}
    section = measured_section("tiny", "a" * 64, {"r": run}, measured_table("m", {"r": run}), None)
    assert "6,490,000 parameters, 50 evaluations a picture" in section


def test_a_dagger_follows_exactly_what_was_not_verified():
    row = PublishedRow(
        system="Tiny", values={"fid": (12.0, None)}, dataset="D", split=None, images=30000, zero_shot=None,
        reranking="best of 8", guidance=None, resolution=64, resize=None, paper="P", printed_in="Q",
        table="1", page=None, unverified=("values", "images", "page"),
    )  # fmt: skip
    table = literature_table([row])
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert (cells["FID"], cells["N"], cells["page"]) == ("12.00 †", "30,000 †", "†")
    assert [name for name, cell in cells.items() if "†" in cell] == ["FID", "N", "page"]
    assert (cells["IS"], cells["zero-shot"], cells["re-ranking"], cells["px"]) == ("", "", "best of 8", "64")


def test_no_figure_where_no_number_has_a_reference(document, tmp_path):
    run = copy.deepcopy(document)
    run["rows"] = [row for row in run["rows"] if row["set"] == "autoencoder"]
    assert draw_measured("t", {"r": run}, tmp_path / "x.png") is None
    assert list(tmp_path.iterdir()) == []


def test_bounds_of_an_interval_have_no_panel(tmp_path):
    bound = {"set": "a", "metric": "share_low", "value": 0.4, "real": 1.0, "higher_is_better": None}
    assert draw_measured("t", {"r": {"rows": [bound]}}, tmp_path / "x.png") is None
    assert draw_measured("t", {"r": {"rows": [bound | {"higher_is_better": True}]}}, tmp_path / "x.png")


def test_wandb_gets_the_cells_of_the_index(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    table = literature_table(read_published())
    logger = wandb_logger(project="ldm", name="experiments", folder=str(tmp_path))
    logger.record("table", table.name, table.header, table.rows, None)
    logger.end()
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")
    sent = json.loads(path.read_text())
    assert (sent["columns"], sent["data"]) == (list(table.header), [list(row) for row in table.rows])
