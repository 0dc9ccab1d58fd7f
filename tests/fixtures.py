"""Fixtures of all tests: tiny pictures, networks and a bundle, all of them real, and the commands."""

import gc
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from jaxtyping import config as jaxtyping_config
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer
from torch import nn

from data_prep.emoji import ASSETS, draw_validation, read_samples
from data_prep.making import write_shards
from ldm.checkpoints.bundle import Part
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.codec import Codec, PictureCodes
from ldm.config import CONF
from ldm.construct import construct
from ldm.data.datamodule import PictureData
from ldm.data.index import ShardIndex
from ldm.data.latents import LatentData
from ldm.generators.code_bundle import load_codes
from ldm.generators.diffusion_bundle import load_codec
from ldm.models.attention import AttentionPool
from ldm.models.vae import AutoencoderKL
from ldm.stages.diffusion import LatentDiffusion
from ldm.stages.optim import warmup_constant
from ldm.stages.terms import DiffusionWithTerms
from ldm.tokenizers import Tokenizer, train
from tests.composing import compose_once, read_once

SIZE = 16  # pixels a side
AUTOENCODER = {
    "_target_": "ldm.models.vae.AutoencoderKL",
    "channels": 8,
    "multipliers": [1, 2],
    "blocks_per_level": 1,
    "latent_channels": 4,
    "norm_groups": 4,
    "patch": 2,
}
IMAGE_TOKENIZER = {
    "_target_": "ldm.models.picture_tokenizers.VQAutoencoder",
    "size": SIZE,
    "features": 8,
    "trunk": {
        "_target_": "ldm.models.picture_tokenizers.Trunk",
        "channels": 8,
        "multipliers": [1, 2],
        "blocks_per_level": 1,
        "norm_groups": 4,
        "patch": 2,
    },
    "quantizer": {"_target_": "ldm.models.quantizers.VectorQuantizer", "num_codes": 16, "dim": 8},
}
LEVEL = {"_target_": "ldm.models.quantizers.VectorQuantizer", "num_codes": 8, "dim": 4}
TWO_LEVELS = {
    "_target_": "ldm.models.convolutional_tokenizers.TwoLevelTokenizer",
    **{"size": SIZE, "channels": 8, "residual_blocks": 1, "residual_channels": 4},
    **{"top": LEVEL, "bottom": LEVEL},
}
TEXT_ENCODER = {
    "_target_": "ldm.models.clip.TextTransformer",
    "vocab_size": 640,
    "context_length": 16,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "embed_dim": 8,
}
BACKBONE = {
    "_target_": "ldm.models.unet.UNet",
    "latent_channels": 4,
    "channels": 32,
    "multipliers": [1, 1],
    "blocks_per_level": 1,
    "norm_groups": 8,
    "transformer": {
        "_target_": "ldm.models.attention.TransformerSpec",
        "context_dim": 16,
        "pool_context": True,
        "levels": [False, True],
        "head_dim": 16,
        "ff_mult": 2,
    },
}

DENOISER = {  # a transformer of one block: each tensor of a network costs every step and every save time
    "_target_": "ldm.models.dit.DiT",
    **{"latent_channels": 4, "context_dim": 16, "width": 32, "depth": 1, "num_heads": 2, "ff_mult": 2},
    "patch": 1,
}


def pytest_collection_finish() -> None:
    """Spares the garbage collector, in tests and their forks, the million objects that imports have left.

    What later imports leave is looked through a fifth as often as usual: a tenth of a second each time.
    """
    gc.freeze()
    gc.set_threshold(700, 10, 50)


def option(group: str, name: str, **changes: Any) -> dict[str, Any]:
    """A yaml of conf/ as plain data."""
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    return OmegaConf.to_container(node, resolve=True) | changes


def network(spec: dict[str, Any], seed: int) -> nn.Module:
    """A network none of whose layers is at the zeros that training starts from."""
    torch.manual_seed(seed)
    module = construct(spec)
    for pool in (each for each in module.modules() if isinstance(each, AttentionPool)):
        nn.init.zeros_(pool.norm_out.weight)  # as it began when the golden pictures were made
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return module


class Ended(NamedTuple):
    """How a command ended: its exit status, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of the error messages that begins with `ldm: `, without that."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("ldm: ")]
        return line.removeprefix("ldm: ")


def run_command(module: str, *arguments: object, status: int | None = 0) -> Ended:
    """Runs the command `python -m <module> <arguments>` in this process.

    Args:
        status: the exit status that it must have; None if it may have any.

    Raises:
        AssertionError: it ended with another status.
    """
    out, err, found = io.StringIO(), io.StringIO(), 0
    argv = [module, *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            import_module(module).main()
        except SystemExit as ended:  # as the interpreter treats it at its end
            found = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            if isinstance(ended.code, str):
                print(ended.code, file=err)
    assert status in (found, None), f"{module} ended with status {found}:\n{out.getvalue()}{err.getvalue()}"
    return Ended(found, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command() -> Callable[..., Ended]:
    """`command("ldm.sample", "seed=3", status=0)`: a command in this process, which imports torch only once.

    Inside `ranks(...)` of tests/distributed it is a command in each of several processes.
    """
    return run_command


@pytest.fixture(scope="module")
def unrendered_figures() -> Iterator[None]:
    """Figures of matplotlib are empty files: for trainings whose curves nobody looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda *_, **__: None)
        yield


@pytest.fixture(scope="session")
def tiny_backbone() -> list[str]:
    """Options of a transformer of one block: what is done for each tensor of a network is done for few."""
    options = ("depth=1", "width=32", "num_heads=2", "long_skips=false")
    return ["backbone=dit_tiny", *(f"backbone.{option}" for option in options)]


def check_shapes(wanted: bool) -> None:
    """Whether calls of the packages that are checked (pyproject.toml) compare shapes with annotations."""
    jaxtyping_config.update("jaxtyping_disable", not wanted)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _compositions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        compose_once(patch)
        read_once(patch)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    check_shapes(True)  # whatever the test before has left


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """The shapes of arguments are not checked: for long loops, whose single steps other tests check."""
    check_shapes(False)
    yield
    check_shapes(True)


@pytest.fixture(scope="session")
def write_emoji() -> Callable[..., ShardIndex]:
    """`write_emoji(root, samples_per_shard=...)`: 24 emoji pictures, 20 to train on and 4 held out."""

    def write(root: Path, *, samples_per_shard: int = 1024) -> ShardIndex:
        everything = json.loads((ASSETS / "captions.json").read_text(encoding="utf-8"))
        captions = dict(list(everything.items())[:1440:60])
        held_out = draw_validation(list(captions), share=1 / 6, seed=0)
        root.mkdir(parents=True, exist_ok=True)
        shards = []
        for split, keys in (("train", captions.keys() - held_out), ("val", held_out)):
            samples = read_samples({key: entry for key, entry in captions.items() if key in keys})
            shards += write_shards(samples, root=root, split=split, samples_per_shard=samples_per_shard)
        index = ShardIndex(root=root, name="emoji", shards=tuple(shards))
        index.save()
        return index

    return write


@pytest.fixture(scope="session")
def emoji(write_emoji, tmp_path_factory) -> Path:
    """Folder of the 24 pictures, the training ones in three shards. Read it, never write to it."""
    root = tmp_path_factory.mktemp("emoji")
    write_emoji(root, samples_per_shard=8)
    return root


@pytest.fixture
def copy_emoji(emoji, tmp_path) -> Callable[[], Path]:
    """`copy_emoji()`: a copy of the shards, to be changed or damaged, without what other tests computed."""
    computed = shutil.ignore_patterns("latents", "texts", "features")

    def copy() -> Path:
        return shutil.copytree(emoji, tmp_path / "emoji", ignore=computed)

    return copy


@pytest.fixture(scope="session")
def specs() -> dict[str, dict[str, Any]]:
    """The `_target_` trees of the tiny networks: `backbone` is the bundle's, `denoiser` what stages train."""
    networks = {"autoencoder": AUTOENCODER, "text_encoder": TEXT_ENCODER}
    return networks | {"backbone": BACKBONE, "denoiser": DENOISER}


@pytest.fixture(scope="session")
def image_tokenizer() -> dict[str, Any]:
    """The `_target_` tree of a tiny tokenizer of 16 px pictures: 4x4 of 16 codes."""
    return IMAGE_TOKENIZER


@pytest.fixture(scope="session")
def write_tokenizer(tmp_path_factory) -> Callable[[dict[str, Any]], Path]:
    """`write_tokenizer(spec)`: a bundle of a tokenizer of pictures with random weights."""

    def write(spec: dict[str, Any]) -> Path:
        part = Part(spec=spec, state=network(spec, 5).state_dict())
        path = tmp_path_factory.mktemp("bundles") / "codes"
        return write_bundle(path, parts={"image_tokenizer": part}, settings={"size": SIZE, "origin": {}})

    return write


@pytest.fixture(scope="session")
def codes_path(write_tokenizer) -> Path:
    """A bundle of the tiny tokenizer. Read it, never write to it."""
    return write_tokenizer(IMAGE_TOKENIZER)


@pytest.fixture(scope="session")
def two_levels_path(write_tokenizer) -> Path:
    """A bundle of a tokenizer of two levels, 2x2 and 4x4 of 8 codes. Read it, never write to it."""
    return write_tokenizer(TWO_LEVELS)


@pytest.fixture
def codes(codes_path) -> PictureCodes:
    return load_codes(image_tokenizer=str(codes_path))


@pytest.fixture(scope="session")
def build_network() -> Callable[[dict[str, Any], int], nn.Module]:
    """`build_network(spec, seed)`."""
    return network


@pytest.fixture(scope="session")
def tokenizer(emoji) -> Tokenizer:
    texts = PictureData(root=str(emoji), size=SIZE, batch_size=4).train.texts()
    return train((text for own in texts for text in own), vocab_size=640, context_length=16)


@pytest.fixture(scope="session")
def write_tiny_bundle(tokenizer) -> Callable[..., Path]:
    """`write_tiny_bundle(path, dtype=...)`: a text-to-image bundle of the tiny networks."""

    def write(path: Path, **options: Any) -> Path:
        named = {"autoencoder": AUTOENCODER, "text_encoder": TEXT_ENCODER, "backbone": BACKBONE}
        parts = {
            name: Part(spec=spec, state=network(spec, seed).state_dict())
            for seed, (name, spec) in enumerate(named.items())
        }
        settings = {
            "size": SIZE,
            "latents": {"shift": [0.5, -0.25, 0.0, 1.0], "scale": [2.0, 1.5, 1.0, 0.5]},
            "process": option("process", "flow"),
            "sampler": option("sampler", "dpmpp_2m", steps=4),
            "guidance": option("guidance", "cfg"),
            "origin": {"experiment": "tests"},
        }
        return write_bundle(path, parts=parts, tokenizer=tokenizer, settings=settings, **options)

    return write


@pytest.fixture(scope="session")
def bundle_path(write_tiny_bundle, tmp_path_factory) -> Path:
    """A bundle in float32. Read it, never write to it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(scope="session")
def codec(bundle_path) -> Codec:
    return load_codec(autoencoder=str(bundle_path), text_encoder=str(bundle_path))


@pytest.fixture
def pictures(emoji) -> PictureData:
    """16 px pictures in batches of 4: five steps an epoch."""
    return PictureData(root=str(emoji), size=SIZE, batch_size=4, seed=3)


@pytest.fixture
def latents(pictures, codec) -> LatentData:
    return LatentData(pictures=pictures, codec=codec)


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    return network(AUTOENCODER, seed=11)


@pytest.fixture
def adamw() -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.99), fused=True)


@pytest.fixture
def diffusion_stage(codec, adamw) -> Callable[..., LatentDiffusion]:
    """`diffusion_stage(**options)`: the denoiser's stage, always with the same first weights.

    With `terms` it is the stage that adds them to its loss.
    """

    def make(**options: Any) -> LatentDiffusion:
        torch.manual_seed(5)
        defaults = {
            "net": construct(DENOISER),
            "process": construct(option("process", "flow")),
            "sampling": construct(option("sampler", "dpmpp_2m", steps=2)),
            "guidance": construct(option("guidance", "cfg")),
            "decay": partial(warmup_constant, warmup=4),
            "seed": 3,
        }
        kind = DiffusionWithTerms if "terms" in options else LatentDiffusion
        return kind(codec=codec, size=SIZE, **({"optimizer": adamw} | defaults | options))

    return make


class FirstStepChecked(Callback):
    """The shapes of arguments are checked until a training's first step is done: later ones have the same."""

    def on_train_batch_end(self, *_: Any) -> None:
        check_shapes(False)

    def teardown(self, *_: Any, **__: Any) -> None:
        check_shapes(True)

    def on_exception(self, *_: Any) -> None:
        check_shapes(True)


@pytest.fixture
def small_stage(diffusion_stage) -> Callable[..., LatentDiffusion]:
    """`small_stage(seed, eps=...)`: the denoiser's stage, trained by AdamW at a constant rate.

    Args:
        seed: of the first weights.
    """

    def make(seed: int = 5, **options: Any) -> LatentDiffusion:
        torch.manual_seed(seed)
        stage = diffusion_stage(net=construct(DENOISER), decay=lambda step: 1.0)
        stage.optimizer = partial(torch.optim.AdamW, lr=1e-3, **options)
        return stage

    return make


@pytest.fixture
def make_trainer(tmp_path) -> Callable[..., Trainer]:
    """`make_trainer(steps, *callbacks, **options)`: a Trainer with the options of conf/trainer/cpu.yaml."""

    def make(steps: int, *callbacks: Any, **options: Any) -> Trainer:
        node = OmegaConf.load(CONF / "trainer" / "cpu.yaml")
        node.steps = steps
        settings = OmegaConf.to_container(node, resolve=True)
        for name in ("_target_", "steps"):
            del settings[name]
        settings |= {
            "logger": False,
            "enable_progress_bar": False,
            "default_root_dir": tmp_path,
            "limit_val_batches": 0,
        }
        return Trainer(callbacks=[*callbacks, FirstStepChecked()], **(settings | options))

    return make
