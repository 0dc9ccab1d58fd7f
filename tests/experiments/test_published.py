import pytest
import yaml

from ldm.evaluation.published import COCO, METRICS, Printed, PublishedRow, read_published, reference_lines
from ldm.metrics.picture_metric import LITERATURE

ENTRY = {
    "system": "Tiny",
    "values": {"fid": 12.5, "is_mean": [20.0, 0.3]},
    "dataset": COCO,
    "split": "validation",
    "images": 30000,
    "zero_shot": True,
    "reranking": None,
    "guidance": "none",
    "resolution": 256,
    "resize": None,
    "paper": "Nobody 2026",
    "printed_in": "Nobody 2026",
    "table": "1",
    "page": None,
    "unverified": ["page"],
}


@pytest.fixture(scope="module")
def rows():
    return read_published()


@pytest.fixture
def refused(tmp_path):
    """The sentence that refuses a file of these entries."""

    def refuse(entries):
        path = tmp_path / "published.yaml"
        path.write_text(yaml.safe_dump(entries))
        with pytest.raises(ValueError, match="published") as raised:
            read_published(path)
        return str(raised.value)

    return refuse


def of(rows, system, dataset=COCO):
    return next(row for row in rows if (row.system, row.dataset) == (system, dataset))


def test_a_row_keeps_what_the_file_says():
    row = PublishedRow.of(ENTRY)
    assert row.values == {"fid": Printed(12.5), "is_mean": Printed(20.0, 0.3)}
    assert (row.zero_shot, row.images, row.page, row.note) == (True, 30000, None, "")
    assert row.verified("fid")
    assert not row.verified("page")


def test_both_printings_of_ldm_stand_with_their_deviations(rows):
    """Rombach et al. 2022, Table 2, in two printings."""
    printed = {
        "LDM-KL-8, early printing": (23.35, 19.93, 0.35),
        "LDM-KL-8, April 2022": (23.31, 20.03, 0.33),
        "LDM-KL-8-G, early printing": (12.61, 26.62, 0.38),
        "LDM-KL-8-G, April 2022": (12.63, 30.29, 0.42),
    }
    for system, (fid, score, spread) in printed.items():
        assert of(rows, system).values == {"fid": Printed(fid), "is_mean": Printed(score, spread)}
        assert (of(rows, system).guidance == "none") is ("-G" not in system)


def test_every_system_that_the_paper_names_has_a_row(rows):
    named = "DALL-E CogView Lafite LDM VQ-Diffusion CLIP-GEN Corgi VQ-VAE-2 StackGAN U-ViT mosaicml MicroDiT"
    for name in named.split():
        assert any(row.system.startswith(name) for row in rows), name


def test_what_was_never_looked_up_says_so(rows):
    assert not of(rows, "CLIP-GEN").verified("fid")
    assert not of(rows, "VQ-VAE-2", "ImageNet").verified("fid")
    stackgan = of(rows, "StackGAN-v2", "CUB-200")
    assert not stackgan.verified("fid")
    assert stackgan.verified("is_mean")
    assert all(row.page is not None or not row.verified("page") or "README" in row.printed_in for row in rows)


def test_no_row_is_a_number_on_flickr30k(rows):
    assert not any("flickr" in row.dataset.lower() for row in rows)


def test_reference_lines_are_the_verified_numbers_of_one_data_set(rows):
    lines = reference_lines(rows, "val/fid")
    assert lines["DALL-E"] == 27.50
    assert lines["LDM-KL-8, early printing"] == 23.35
    assert not {"CLIP-GEN", "VQ-VAE-2", "StackGAN-v2", "MicroDiT, 37 M pictures"} & set(lines)
    assert reference_lines(rows, "heldout/is_mean")["Lafite"] == 26.02
    assert reference_lines(rows, "val/fid", dataset="Oxford-102") == {"StackGAN-v2": 48.68}


@pytest.mark.parametrize("metric", ["val/fd_efficientnet_lite0", "val/loss", "val/fid_of_something", ""])
def test_other_numbers_have_no_reference_line(rows, metric):
    assert reference_lines(rows, metric) == {}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": 0}, "images=0 must be at least 1"),
        ({"page": -3}, "page=-3 must be at least 1"),
        ({"images": True}, "images=True must be a whole number or null"),
        ({"zero_shot": "yes"}, "zero_shot='yes' must be true or false or null"),
        ({"system": ""}, "system='' must be a text that isn't empty"),
        ({"table": 2}, "table=2 must be a text that isn't empty or null"),
        ({"values": {"fid": -1}}, "fid=-1 must be a positive number"),
        ({"values": {"fid": [1, 2, 3]}}, "must be a positive number, or a list of it and its ±"),
        ({"values": {"fidd": 3}}, "values names 'fidd', which is not one of"),
        ({"values": 3}, "values=3 must be a map"),
        ({"values": {}}, "needs a note that says why it is here"),
        ({"unverified": "page"}, "unverified='page' must be a list"),
        ({"unverified": ["pages"]}, "unverified names 'pages', neither a field nor one of"),
        ({"sise": 3}, "there is no field 'sise'"),
    ],
)
def test_a_row_that_is_wrong_is_named_with_what_is_wrong(refused, change, sentence):
    message = refused([ENTRY, {**ENTRY, "system": "Other", **change}])
    assert sentence in message
    assert "row 2" in message


def test_a_number_that_is_none_is_refused(refused):
    assert "fid=nan is no finite number" in refused([ENTRY | {"values": {"fid": float("nan")}}])


def test_a_fact_left_out_is_not_taken_for_unknown(refused):
    assert "guidance is missing: write null" in refused([{k: v for k, v in ENTRY.items() if k != "guidance"}])


def test_two_printings_need_two_names(refused):
    assert f"2 rows of Tiny on {COCO}" in refused([ENTRY, ENTRY])


@pytest.mark.parametrize("text", ["", "a: 1", "- 3", "a: [", "\x00"])
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path, text):
    path = tmp_path / "published.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"must be a list of rows|it is no yaml"):
        read_published(path)
    with pytest.raises(ValueError, match="there is no"):
        read_published(tmp_path / "missing.yaml")


def test_metrics_are_called_as_ours_are():
    """A curve finds its line by its last name, so both sides must spell it the same."""
    assert set(METRICS) <= set(LITERATURE.values())
