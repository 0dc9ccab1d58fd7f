"""`python -m ldm.evaluate protocol=pictures_fid`: the numbers of `fidelity`, or one sentence."""

import pytest
import torch
from torch_fidelity import calculate_metrics

from benchmarks.drawn_pictures import draw
from ldm.evaluation.results import read_results
from ldm.io.reading import hash_file

COUNT, SUBSET, SPLITS = 4, 2, 2
THEIRS = {
    "kid": "kernel_inception_distance_mean",
    "kid_sd": "kernel_inception_distance_std",
    "is_mean": "inception_score_mean",
    "is_sd": "inception_score_std",
}


@pytest.fixture
def made(tmp_path):
    return draw(tmp_path / "made", count=COUNT, side=48, grain=7, seed=1)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("folders") / "real", count=COUNT, side=48, grain=5, seed=0)


@pytest.fixture
def measure(command, made, real, inception_path, tmp_path):
    """`measure(*arguments, weights=..., status=...)`: the folder that was made against the real one."""

    def run(*arguments, weights=inception_path, status=0):
        sets = "protocol.sets=[{name:pictures,split:null,captions:null,metrics:[kid,inception_score]}]"
        defaults = [
            *("protocol=pictures_fid", sets, f"pictures={made}", f"reference={real}"),
            *(f"metric.kid.subset_size={SUBSET}", f"metric.inception_score.splits={SPLITS}"),
            *(f"out={tmp_path / 'out'}", f"cache={tmp_path / 'features'}"),
            f"protocol.extractors.inception.weights={weights}",
            f"protocol.extractors.inception.sha256={hash_file(weights)}",
        ]
        return command("ldm.evaluate", *defaults, *arguments, status=status)

    return run


def test_two_folders_have_torch_fidelitys_numbers(measure, made, real, inception_path, tmp_path):
    measure()
    theirs = calculate_metrics(
        input1=str(made),
        input2=str(real),
        isc=True,
        isc_splits=SPLITS,
        kid=True,
        kid_subset_size=SUBSET,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_path),
        cuda=False,
        cache=False,
        verbose=False,
    )
    rows = {row["metric"]: row for row in read_results(tmp_path / "out" / "results.json")["rows"]}
    assert rows.keys() == THEIRS.keys()
    for name, theirs_name in THEIRS.items():
        # what two calculators of one preparation may differ by
        assert rows[name]["value"] == pytest.approx(theirs[theirs_name], rel=1e-3, abs=1e-6), name
    assert rows["is_mean"]["real"] > 1  # the reference's own, of as many pictures


def other_size(made):
    draw(made / "others", count=1, side=32, grain=5, seed=2)
    return [], {}


def broken_picture(made):
    file = made / "000003.png"
    file.write_bytes(file.read_bytes()[:60])
    return [], {}


def too_few(made):
    return ["metric.kid.subset_size=1000"], {}


def other_hash(made):
    return ["protocol.extractors.inception.sha256=null"], {}


def other_shape(made):
    return [], {"fc.weight": torch.zeros(1000, 2048)}


def not_finite(made):
    return [], {"Mixed_7c.branch1x1.bn.bias": torch.full((320,), torch.nan)}


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (other_size, "has 32 x 32 pixels; 4 of 5 pictures have 48 x 48"),
        (broken_picture, "000003.png can't be decoded"),
        (too_few, "of subsets of 1000 pictures needs at least 1000 on each side, got 2"),
        (other_hash, "expected 6726825d0af5"),
        (other_shape, "1 differ, first 'fc.weight' with shape (1000, 2048), expected (1008, 2048)"),
        (not_finite, "'inception' hold NaN or infinity"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(
    measure, made, inception_path, tmp_path, fault, sentence
):
    arguments, tensors = fault(made)
    weights = inception_path
    if tensors:
        weights = tmp_path / "weights.pth"
        torch.save(torch.load(inception_path, weights_only=True) | tensors, weights)
    assert sentence in measure(*arguments, weights=weights, status=1).sentence
    assert not (tmp_path / "out").exists()
