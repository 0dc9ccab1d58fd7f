"""`python -m ldm.evaluate`, run in this process with a bundle of tiny networks that know nothing."""

import sys

import pytest

from ldm.checkpoints.bundle import Bundle, Part, write_bundle
from ldm.evaluate import main
from ldm.evaluation.results import read_results, values

VISION = {
    "_target_": "ldm.models.clip.VisionTransformer",
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "num_layers": 1,
    "num_heads": 2,
    "embed_dim": 8,
}
SETS = (
    "[{name:train,split:train,captions:6,metrics:[frechet,nearest,clip_score]},"
    "{name:several,split:val,captions:2,samples:2,metrics:[diversity]}]"
)


@pytest.fixture(scope="module")
def bundle(bundle_path, build_network, tmp_path_factory):
    """The tiny bundle with a vision tower, so that its CLIP can judge."""
    source = Bundle.open(bundle_path)
    vision = Part(spec=VISION, state=build_network(VISION, 7).state_dict())
    settings = {
        key: value for key, value in source.config.items() if key not in ("format", "parts", "tokenizer")
    }
    return write_bundle(
        tmp_path_factory.mktemp("judged") / "bundle",
        parts={name: source.part(name) for name in source.names} | {"image_encoder": vision},
        tokenizer=source.tokenizer(),
        settings=settings,
    )


@pytest.fixture
def command(bundle, emoji, monkeypatch):
    def run(*arguments):
        defaults = [f"bundle={bundle}", f"data.root={emoji}", "protocol=quick", f"protocol.sets={SETS}"]
        monkeypatch.setattr(sys, "argv", ["ldm.evaluate", *defaults, *arguments])
        main()

    return run


def refusal(command, capsys, *arguments):
    """What the command says when it ends with status 1, in one line."""
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ldm: ")]
    return line


def test_a_bundle_becomes_results_report_and_figures_twice_the_same(command, tmp_path):
    found = []
    for name in ("first", "second"):
        command(f"out={tmp_path / name}", "steps=1", "scale=2", f"batch_size={len(name)}")
        found.append(read_results(tmp_path / name / "results.json"))
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == [
        "report.md",
        "results.json",
        "several.png",
        "train.png",
    ]
    names = {
        "train/fd_efficientnet_lite0",
        "train/r1_efficientnet_lite0",
        "train/own_clip_score",
        "autoencoder/psnr",
    }
    assert names <= set(values(found[0]))
    assert values(found[0]) == pytest.approx(values(found[1]), rel=1e-4)  # batches differ in their last bits
    assert found[0]["protocol"]["hash"] == found[1]["protocol"]["hash"]
    assert "scale=2" in found[0]["protocol"]["guidance"]
    assert "steps=1" in found[0]["protocol"]["sampler"]


def test_what_cannot_be_measured_is_refused_and_nothing_is_written(command, capsys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert "exists already" in refusal(command, capsys, f"out={out}")
    assert "no bundle" in refusal(command, capsys, f"bundle={tmp_path}", f"out={tmp_path / 'new'}")
    assert "shards.json is missing" in refusal(
        command, capsys, f"data.root={tmp_path}", f"out={tmp_path / 'new'}"
    )
    assert "device=tpu" in refusal(command, capsys, "device=tpu", f"out={tmp_path / 'new'}")
    assert "steps=0 must lie between" in refusal(command, capsys, "steps=0", f"out={tmp_path / 'new'}")
    assert "did you mean 'precision'" in refusal(
        command, capsys, "presicion=float32", f"out={tmp_path / 'new'}"
    )
    assert "whole number" in refusal(command, capsys, "steps=many", f"out={tmp_path / 'new'}")
    assert "precision='float8'" in refusal(command, capsys, "precision=float8", f"out={tmp_path / 'new'}")
    assert list(tmp_path.iterdir()) == [out]
    assert list(out.iterdir()) == []
