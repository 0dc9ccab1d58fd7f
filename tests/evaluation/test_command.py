"""`python -m ldm.evaluate`, run in this process with a bundle of tiny networks that know nothing."""

import sys

import pytest
import torch

from ldm.checkpoints.bundle import Part, write_bundle
from ldm.construct import construct
from ldm.evaluate import main
from ldm.evaluation.results import read_results, values
from ldm.tokenizers import train

SPECS = {
    "backbone": {
        "_target_": "ldm.models.unet.UNet",
        "latent_channels": 4,
        "channels": 32,
        "multipliers": [1],
        "blocks_per_level": 1,
        "context_dim": 32,
        "transformer": {"_target_": "ldm.models.attention.TransformerSpec", "levels": [True], "head_dim": 16},
    },
    "autoencoder": {
        "_target_": "ldm.models.vae.AutoencoderKL",
        "channels": 16,
        "multipliers": [1, 1],
        "blocks_per_level": 1,
        "latent_channels": 4,
        "norm_groups": 8,
    },
    "text_encoder": {
        "_target_": "ldm.models.clip.TextTransformer",
        "vocab_size": 640,
        "context_length": 12,
        "width": 32,
        "num_layers": 1,
        "num_heads": 2,
        "embed_dim": 16,
    },
    "image_encoder": {
        "_target_": "ldm.models.clip.VisionTransformer",
        "image_size": 16,
        "patch_size": 8,
        "width": 32,
        "num_layers": 1,
        "num_heads": 2,
        "embed_dim": 16,
    },
}
SETTINGS = {
    "size": 16,
    "latents": {"shift": [0.0] * 4, "scale": [1.0] * 4},
    "process": {
        "_target_": "ldm.diffusion.process.Process",
        "schedule": {"_target_": "ldm.diffusion.schedules.rectified_flow", "_partial_": True},
        "prediction": {"_target_": "ldm.diffusion.predictions.Flow"},
    },
    "sampler": {
        "_target_": "ldm.diffusion.samplers.Sampling",
        "method": {"_target_": "ldm.diffusion.samplers.ddim", "_partial_": True},
        "grid": {"_target_": "ldm.diffusion.grids.uniform", "_partial_": True},
        "steps": 2,
    },
    "guidance": {"_target_": "ldm.diffusion.guidance.cfg", "_partial_": True, "scale": 3.0},
}
SETS = "[{name:train,split:train,captions:6,metrics:[frechet,nearest,clip_score]},{name:several,split:val,captions:2,samples:2,metrics:[diversity]}]"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    texts = [f"picture {number} of colour red" for number in range(50)]
    return write_bundle(
        tmp_path_factory.mktemp("run") / "bundle",
        parts={name: Part(spec=spec, state=construct(spec).state_dict()) for name, spec in SPECS.items()},
        tokenizer=train(texts, vocab_size=640, context_length=12),
        settings=SETTINGS,
    )


@pytest.fixture
def command(bundle, data_root, monkeypatch):
    def run(*arguments):
        defaults = [f"bundle={bundle}", f"data.root={data_root}", "protocol=quick", f"protocol.sets={SETS}"]
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
    names = {"train/fd_efficientnet_lite0", "train/r1_efficientnet_lite0", "train/own_clip_score", "autoencoder/psnr"}
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
    assert "shards.json is missing" in refusal(command, capsys, f"data.root={tmp_path}", f"out={tmp_path / 'new'}")
    assert "device=tpu" in refusal(command, capsys, "device=tpu", f"out={tmp_path / 'new'}")
    assert "steps=0 must lie between" in refusal(command, capsys, "steps=0", f"out={tmp_path / 'new'}")
    assert "did you mean 'precision'" in refusal(command, capsys, "presicion=float32", f"out={tmp_path / 'new'}")
    assert list(tmp_path.iterdir()) == [out]
    assert list(out.iterdir()) == []
