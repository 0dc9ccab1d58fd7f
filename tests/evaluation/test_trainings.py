"""Results of several trainings become one document."""

import pytest

from ldm.evaluation.results import Training, bundles_of, check_alike, together


def document(sha256, value, **protocol):
    row = {
        "set": "train", "metric": "fd", "value": value, "sd": 1.0, "per_seed": [[value]], "per_caption": [],
        "floor": 2.0, "ceiling": None, "real": None, "seconds": 1.0,
    }  # fmt: skip
    return {
        "protocol": {"hash": "a" * 64, "ruler": "r", "sampler": "ddim"} | protocol,
        "bundle": {"sha256": sha256, "path": f"runs/{sha256}"},
        "rows": [row],
        "provenance": {"seconds": 2.0},
    }


def test_trainings_are_joined_with_the_spread_between_them():
    found = together([document("a", 1.0), document("b", 3.0), document("c", 5.0)])
    (row,) = found["rows"]
    assert (row["value"], row["sd_trainings"], row["sd"], row["trainings"]) == (3.0, 2.0, 1.0, 3)
    assert (row["per_seed"], row["floor"], row["ceiling"]) == ([[1.0], [3.0], [5.0]], 2.0, None)
    assert found["provenance"]["seconds"] == 6.0
    alone = document("a", 1.0)
    assert together([alone]) == alone


def test_a_training_that_counts_twice_and_another_protocol_are_refused():
    with pytest.raises(ValueError, match="lists 3 trainings, of which only 2 differ"):
        check_alike([Training(name, name[-1], {"nfe": 5}) for name in ("runs/a", "runs/b", "copy_of/a")])
    other = document("b", 1.0, hash="b" * 64, sampler="heun")
    with pytest.raises(ValueError, match=r"runs/a and runs/b are of .* protocols, a{12} and b{12}: sampler"):
        together([document("a", 1.0), other])
    with pytest.raises(ValueError, match="a and b generate in different ways, nfe is 5 and 9: choose one"):
        check_alike([Training("a", "1", {"nfe": 5}), Training("b", "2", {"nfe": 9})])


def test_the_folder_of_a_sweep_is_the_list_of_its_trainings(tmp_path):
    assert bundles_of(str(tmp_path)) == [str(tmp_path)]
    assert bundles_of(["a", "b"]) == ["a", "b"]
    for seed in (0, 1):
        (tmp_path / f"seed_{seed}").mkdir()
        (tmp_path / f"seed_{seed}" / "point.json").touch()
    with pytest.raises(ValueError, match="2 of 2 trainings, seed_0 first, are unfinished"):
        bundles_of(str(tmp_path))
    for seed, run in ((0, "1"), (1, "1"), (1, "2")):
        bundle = tmp_path / f"seed_{seed}" / "emoji" / run / "bundle"
        bundle.mkdir(parents=True)
        (bundle / "config.yaml").touch()
    newest = [tmp_path / "seed_0" / "emoji" / "1" / "bundle", tmp_path / "seed_1" / "emoji" / "2" / "bundle"]
    assert bundles_of(str(tmp_path)) == [str(path) for path in newest]
