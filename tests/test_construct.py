"""Facts about the list of what a config may name."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from ldm import UserError
from ldm.config import TARGETS
from ldm.construct import construct, locate, moved, moves
from ldm.models.unet import UNet

FOREIGN = [
    "os.system",
    "os.popen",
    "posix.system",
    "subprocess.run",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "builtins.__import__",
    "functools.partial",
    "operator.methodcaller",
    "importlib.import_module",
    "shutil.rmtree",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "torch.serialization.load",
    "torch.utils.cpp_extension.load",
    "numpy.load",
    "yaml.unsafe_load",
    "hydra.utils.instantiate",
    "ldmx.models.unet.UNet",
    "ldm",
    "",
    "eval",
    ".os.system",
    "ldm/models/unet.UNet",
    # aliases: found under an allowed name, defined elsewhere
    "ldm.data.index.json.loads",
    "ldm.data.index.hashlib.file_digest",
    "ldm.checkpoints.provenance.subprocess.run",
    "ldm.checkpoints.bundle.shutil.rmtree",
    "ldm.checkpoints.bundle.yaml.unsafe_load",
    "ldm.checkpoints.training_state.os.remove",
    "ldm.config.compose",
    "ldm.construct.partial",
    "ldm.construct.import_module",
    "torch.nn.modules.module.torch.load",
    "torch.optim.optimizer.functools.partial",
    "pytorch_lightning.loggers.csv_logs.os.system",
    "torchmetrics.metric.inspect.os.system",
]


@pytest.mark.parametrize("allowed", [("ldm.models.", "ldm.diffusion."), TARGETS], ids=["bundle", "command"])
@pytest.mark.parametrize("target", FOREIGN)
def test_a_foreign_target_is_refused(target, allowed, tmp_path):
    witness = tmp_path / "witness"
    for node in (
        {"_target_": target, "command": f"touch {witness}"},
        {"_target_": target, "_partial_": True},
        {"a": [{"b": {"_target_": target}}]},
        {"_target_": "ldm.models.vae.AutoencoderKL", "channels": {"_target_": target, "_partial_": True}},
    ):
        with pytest.raises(ValueError, match="_target_"):
            construct(node, allowed=allowed)
    assert not witness.exists()


@pytest.mark.parametrize("target", [None, 3, ["os.system"], {"_target_": "os.system"}, b"os.system"])
def test_a_target_that_is_no_name_is_refused(target):
    with pytest.raises(ValueError, match="_target_"):
        construct({"_target_": target})


@pytest.mark.parametrize(
    "target",
    [
        "ldm.models.unet.Nothing",
        "ldm.models.nowhere.UNet",
        "ldm.models.unet.UNet.nothing",
        "ldm.models.unet.VECTOR",
        "ldm.models.unet.torch",
        "ldm.models.",
        "ldm.models..unet",
    ],
)
def test_a_target_that_does_not_exist_or_is_no_callable_is_refused(target):
    with pytest.raises(ValueError, match="_target_"):
        construct({"_target_": target})


def test_what_only_the_command_line_may_name_is_refused_in_a_bundle():
    node = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.1}
    assert construct(node, allowed=TARGETS).keywords == {"lr": 0.1}
    with pytest.raises(
        ValueError, match=r"refused: targets start with one of ldm\.models\., ldm\.diffusion\."
    ):
        construct(node)


@pytest.mark.parametrize(
    "changes", [{"chanels": 8}, {"_args_": [1]}, {"channels": "wide"}, {"multipliers": 3}]
)
def test_arguments_that_do_not_fit_are_refused_in_a_sentence(specs, changes):
    with pytest.raises(ValueError, match=r"'ldm\.models\.vae\.AutoencoderKL' can't be called with"):
        construct(specs["autoencoder"] | changes)


def test_a_tree_is_built_from_its_leaves():
    node = {
        "sampler": {
            "_target_": "ldm.diffusion.samplers.Sampling",
            "method": {"_target_": "ldm.diffusion.samplers.ddim", "_partial_": True, "eta": 0.5},
            "grid": {"_target_": "ldm.diffusion.grids.uniform", "_partial_": True},
            "steps": 3,
        },
        "plain": [1, "two", None, {"three": 3.0}],
    }
    built = construct(node)
    assert built["sampler"].steps == 3
    assert built["sampler"].method.keywords == {"eta": 0.5}
    assert not isinstance(
        built["sampler"].grid, partial
    )  # nothing is bound: the function itself, not a wrapper
    assert built["plain"] == node["plain"]


def test_the_tree_itself_is_left_as_it_was(specs):
    before = repr(specs["backbone"])
    with torch.device("meta"):
        assert isinstance(construct(specs["backbone"]), UNet)
    assert repr(specs["backbone"]) == before


EARLIER = [  # objects that configs and bundles of earlier versions name
    *(name for name in moves() if not name.endswith(".*")),
    "ldm.callbacks.progress.ProgressBar",
    "ldm.callbacks.reconstructions.Reconstructions",
    "ldm.callbacks.retrieved.RetrievedPictures",
    "ldm.callbacks.sample_grid.SampleGrid",
    "ldm.callbacks.tensorboard_log.tensorboard_logger",
    "ldm.callbacks.wandb_log.wandb_logger",
    "ldm.sharding.Sharded",
    "ldm.data.captions.captions",
    "ldm.data.crops.random_resized",
    "ldm.diffusion.samplers.ancestral.ddim",
    "ldm.diffusion.samplers.ancestral.ddpm",
    "ldm.diffusion.samplers.ancestral.euler_ancestral",
    "ldm.diffusion.samplers.consistency.lcm",
    "ldm.diffusion.samplers.corrected.unipc",
    "ldm.diffusion.samplers.edm.Churn",
    "ldm.diffusion.samplers.edm.edm",
    "ldm.diffusion.samplers.edm.euler",
    "ldm.diffusion.samplers.edm.heun",
    "ldm.diffusion.samplers.pseudo_linear.pndm",
    "ldm.diffusion.samplers.sampling.Sampling",
    "ldm.data.buckets.Buckets",
    "ldm.metrics.cmmd.Cmmd",
    "ldm.metrics.copies.CopiedShare",
    "ldm.metrics.frechet_ratio.FrechetRatio",
    "ldm.metrics.kernel_distance.KernelDistance",
    "ldm.metrics.mind.Mind",
    "ldm.metrics.clip_features.ClipFeatures",
    "ldm.metrics.clip_score.ClipScore",
    "ldm.metrics.clip_score.RPrecision",
    "ldm.metrics.dinov2.Dinov2",
    "ldm.metrics.inception.Inception2015",
    "ldm.metrics.inception_score.InceptionScore",
    "ldm.metrics.memorisation.Memorisation",
    "ldm.metrics.perceptual.Lpips",
    "ldm.metrics.perceptual.efficientnet_lite0",
    "ldm.metrics.precision_recall.DensityCoverage",
    "ldm.metrics.precision_recall.PrecisionRecall",
    "ldm.metrics.lpips.Lpips",
    "ldm.metrics.nearest.PictureRecall",
    "ldm.metrics.pixels.Pixels",
    "ldm.metrics.r_precision.RPrecision",
    "ldm.metrics.vendi.VendiScore",
    "ldm.callbacks.power_averages.PowerAverages",
    "ldm.callbacks.round_trip.RoundTrip",
    "ldm.callbacks.target.Target",
    "ldm.metrics.clipped.ClippedDensityCoverage",
    "ldm.generators.clip_pair.load_clip",
    "ldm.generators.discrete_diffusion.open_discrete_diffusion",
    "ldm.generators.two_level.open_two_level",
    "ldm.models.bert.SentenceEncoder",
    "ldm.models.discrete_vae.DiscreteVAE",
    "ldm.models.discriminator.PatchDiscriminator",
    "ldm.models.joint_text.ReadingDenoiser",
    "ldm.models.perceptual.PerceptualDistance",
    "ldm.models.pixel_prior.PixelPrior",
    "ldm.models.strided_tokenizers.PlainTokenizer",
    "ldm.stages.diffusion_with_terms.DiffusionWithTerms",
    "ldm.stages.discrete_diffusion.DiscreteDiffusionStage",
    "ldm.stages.two_level.TwoLevelStage",
]


@pytest.mark.parametrize("old", EARLIER)
def test_a_config_of_an_earlier_version_finds_what_has_moved(old):
    new = moved(old)
    assert locate(old, allowed=TARGETS) is locate(new, allowed=TARGETS)
    assert moved(new) == new  # one step
    assert old in moves() or new.rpartition(".")[2] == old.rpartition(".")[2]


def test_every_merged_module_is_tried_and_other_names_stay():
    tried = {f"{old.rpartition('.')[0]}.*" for old in EARLIER if old not in moves()}
    assert tried == {name for name in moves() if name.endswith(".*")}
    for text in ("0.1", "uniform", "a cat. a dog", "ldm.diffusion.samplers.edm", "ldm.callbacks.ema.EMA"):
        assert moved(text) == text


class Planted(torch.nn.Module):
    """A network whose constructor has a bug for a width of 3."""

    def __init__(self, *, width: int, factors: Sequence[int] = ()) -> None:
        super().__init__()
        if width == 3:
            len(width)
        if width == 4:
            raise ValueError("torch's own")


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr("ldm.models.vae.Planted", Planted, raising=False)
    monkeypatch.setattr(Planted, "__module__", "ldm.models.vae")
    return {"_target_": "ldm.models.vae.Planted"}


@pytest.mark.parametrize(("width", "kind"), [(3, TypeError), (4, ValueError)])
def test_a_bug_inside_a_constructor_is_no_wrong_argument(planted, width, kind):
    with pytest.raises(kind) as caught:
        construct(planted | {"width": width})
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"wdth": 2}, "got an unexpected keyword argument 'wdth', did you mean 'width'?"),
        ({}, "missing a required argument: 'width'"),
        ({"width": "2"}, "width='2': it must be int"),
        ({"width": 2, "factors": 2}, "factors='2': it must be a list of int"),
        ({"width": 2, "factors": [1, "a"]}, "it must be a list of int"),
        ({"width": 2, 3: 4}, "keywords must be strings"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_built(planted, given, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        construct(planted | given)


def test_the_docs_list_every_name_that_has_moved():
    page = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
    rows = re.findall(r"^\| (`ldm\..*) \| `(ldm\..*)` \|$", page, re.MULTILINE)
    listed = {old: new for olds, new in rows for old in re.findall(r"`([^`]+)`", olds)}
    assert listed == {old: new + old[-2:] * old.endswith(".*") for old, new in moves().items()}
