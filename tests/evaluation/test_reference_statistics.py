import dataclasses
import pickle

import numpy as np
import pytest
import torch

from ldm.evaluation.protocol import ELSEWHERE
from ldm.evaluation.reference_set import ReferenceSet
from ldm.evaluation.reference_statistics import Preparation, Statistics
from ldm.evaluation.report import measured_cells
from ldm.metrics.frechet import FrechetDistance, Moments, gaussian_of

MU, SIGMA = np.arange(3.0), np.eye(3)


@pytest.fixture
def statistics(gallery, evaluator):
    preparation = Preparation(network=evaluator.protocol.features[0], size=16, resize="bicubic")
    gaussian = gaussian_of(part.features["colours"] for part in gallery.observed())
    return Statistics(gaussian=gaussian, features="colours", count=26, preparation=preparation, of="a" * 64)


@pytest.fixture
def alone(evaluator, observers):
    """`alone(statistics)`: the evaluator without a real picture."""

    def make(statistics):
        distance = FrechetDistance(features="colours", dims=12)
        distance.reference = statistics.gaussian
        nowhere = {
            name: [caption._replace(row=ELSEWHERE) for caption in captions]
            for name, captions in evaluator.captions.items()
        }
        return dataclasses.replace(
            evaluator,
            reference_set=ReferenceSet({}, observers=observers, progress=False),
            statistics=statistics,
            captions=nowhere,
            metrics=dict(evaluator.metrics) | {"frechet": distance},
        )

    return make


def test_a_file_comes_back_to_the_bit(statistics, tmp_path):
    path = tmp_path / "new" / "real.npz"
    statistics.write(path)
    found = Statistics.read(path)
    assert torch.equal(found.gaussian.mean, statistics.gaussian.mean)
    assert torch.equal(found.gaussian.covariance, statistics.gaussian.covariance)
    assert dataclasses.replace(found, gaussian=statistics.gaussian) == statistics
    assert found.count == 26
    assert [file.name for file in path.parent.iterdir()] == ["real.npz"]


def test_they_are_the_mean_and_covariance_of_all_real_pictures(statistics, gallery):
    expected = Moments.of(gallery.features["colours"]).gaussian()
    torch.testing.assert_close(statistics.gaussian.mean, expected.mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(statistics.gaussian.covariance, expected.covariance, atol=1e-12, rtol=0)


def test_the_distance_is_that_to_the_pictures_and_nothing_else_is_measured(
    alone, statistics, evaluator, paints_with_errors
):
    caption_set = evaluator.protocol.sets[0]
    with_pictures = evaluator.measure(paints_with_errors, caption_set)
    without = alone(statistics).measure(paints_with_errors, caption_set)
    (row,) = without.rows
    assert row.value == pytest.approx(with_pictures.rows[0].value, rel=1e-9)
    assert (row.metric, row.few, row.foreign) == ("fd_colours", True, False)
    assert (row.floor, row.ceiling, row.real) == (None, None, None)
    assert without.skipped == ["clip_score", "nearest"]


def test_files_of_other_calculators_are_read_and_labelled(alone, evaluator, gallery, paints, tmp_path):
    """pytorch-fid and clean-fid write mu and sigma, and nothing that tells how pictures were resized."""
    rows = gallery.features["colours"].double().numpy()
    np.savez(tmp_path / "theirs.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    found = Statistics.read(tmp_path / "theirs.npz")
    assert (found.features, found.count, found.preparation) == ("inception", None, None)
    measured = alone(found).measure(paints, evaluator.protocol.sets[0]).rows[0]
    expected = evaluator.measure(paints, evaluator.protocol.sets[0]).rows[0]
    assert measured.value == pytest.approx(expected.value, rel=1e-9)
    assert measured.foreign
    assert "reference of unknown preparation" in measured_cells(dataclasses.asdict(measured))[1]
    with pytest.raises(ValueError, match="are not written again"):
        found.write(tmp_path / "again.npz")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 32}, "picture size '16', the protocol has '32'"),
        ({"resize": "bilinear"}, "picture resize 'bicubic', the protocol has 'bilinear'"),
        ({"sha256": "e" * 64}, f"network sha256 '{'f' * 40}', the protocol has '{'e' * 40}'"),
        ({"rounded": True}, "network rounded 'False', the protocol has 'True'"),
    ],
)
def test_another_network_or_preparation_is_refused(statistics, change, sentence):
    ours = statistics.preparation
    if change.keys() <= {"size", "resize"}:
        ours = dataclasses.replace(ours, **change)
    else:
        ours = dataclasses.replace(ours, network=dataclasses.replace(ours.network, **change))
    with pytest.raises(ValueError, match=sentence):
        statistics.check({"colours": ours}, source="real.npz")
    statistics.check({"colours": statistics.preparation}, source="real.npz")


def test_features_that_nobody_measures_are_refused(statistics):
    with pytest.raises(ValueError, match="are of the features 'colours', the protocol measures shapes:"):
        statistics.check({"shapes": statistics.preparation}, source="real.npz")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"mu": MU}, "holds mu: statistics have mu and sigma"),
        ({"mu": MU, "sigma": np.eye(4)}, r"mu of shape \(3,\) and sigma of \(4, 4\)"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "not all finite numbers"),
        ({"mu": np.array(["a", "b", "c"]), "sigma": SIGMA}, "not all finite numbers"),
        ({"mu": MU, "sigma": SIGMA, "preparation": "{}"}, "records its origin in another format"),
        ({"mu": MU, "sigma": SIGMA, "preparation": "{}", "format": 9}, "9, this version reads 2"),
        ({"mu": MU, "sigma": SIGMA, "preparation": "[" * 100_000, "format": 2}, "nested more than 100 deep"),
        ({"mu": MU, "sigma": SIGMA, "preparation": "3", "format": [2, 2]}, "its origin in another format"),
        ({"mu": MU, "sigma": -SIGMA}, "negative variances"),
        ({"mu": MU, "sigma": np.diag([1.0, 1.0, -0.01])}, "negative variances"),
        ({"mu": MU, "sigma": [[1.0, 2, 0], [2, 1, 0], [0, 0, 1]]}, "negative variances"),  # correlation 2
        ({"mu": MU, "sigma": np.triu(np.full((3, 3), 0.5)) + SIGMA}, r"not symmetric \(by up to 0\.5\)"),
        ({"mu": MU.astype(np.float16), "sigma": SIGMA}, "mu of float16 .* write both in float32 or float64"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu of shape \(0,\)"),
        ({"mu": np.array([print, len], dtype=object), "sigma": SIGMA}, "is no npz file of numbers"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_in_a_sentence(arrays, sentence, tmp_path):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        Statistics.read(tmp_path / "wrong.npz")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": -7}, "has count=-7: statistics are of two pictures or more"),
        ({"count": 1}, "has count=1"),
        ({"count": 25.5}, "has count=25.5"),
        ({"count": 25}, "differs from what was written"),
        ({"mu": np.zeros(12)}, "differs from what was written"),
        ({"of": "b" * 64}, "differs from what was written"),
        ({"sha256": "c" * 64}, "differs from what was written"),
    ],
)
def test_a_file_changed_since_it_was_written_is_refused(statistics, change, sentence, tmp_path):
    statistics.write(tmp_path / "real.npz")
    with np.load(tmp_path / "real.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "same.npz", **arrays)
    assert Statistics.read(tmp_path / "same.npz").of == statistics.of
    np.savez(tmp_path / "changed.npz", **arrays | change)
    with pytest.raises(ValueError, match=sentence):
        Statistics.read(tmp_path / "changed.npz")


def test_rounding_to_float32_and_fewer_pictures_than_features_are_no_faults(tmp_path):
    rows = np.random.default_rng(0).standard_normal((40, 200)).astype(np.float32) * 3 + 5
    sigma = np.cov(rows, rowvar=False).astype(np.float32)  # of rank 39, its least eigenvalue below zero
    np.savez(tmp_path / "theirs.npz", mu=rows.mean(0), sigma=sigma)
    assert np.linalg.eigvalsh(sigma.astype(np.float64)).min() < 0
    assert Statistics.read(tmp_path / "theirs.npz").gaussian.covariance.shape == (200, 200)
    np.savez(tmp_path / "one.npz", mu=MU, sigma=np.zeros((3, 3)))  # the same picture over and over
    Statistics.read(tmp_path / "one.npz")


@pytest.mark.parametrize("content", [b"", b"mu", pickle.dumps({"mu": 1})])
def test_a_file_that_is_no_npz_is_refused(content, tmp_path):
    (tmp_path / "wrong.npz").write_bytes(content)
    np.save(tmp_path / "single.npy", MU)
    with pytest.raises(ValueError, match="is no npz file of numbers"):
        Statistics.read(tmp_path / "single.npy")
    with pytest.raises(ValueError, match="is no npz file of numbers"):
        Statistics.read(tmp_path / "wrong.npz")
    with pytest.raises(ValueError, match=r"there is no file .*: write_statistics="):
        Statistics.read(tmp_path / "missing.npz")
