"""Facts about a training step on a device, shown on the meta device, which has no values to wait for."""

from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.optim import adam

from benchmarks.gpu.synchronisations import BySteps, Synchronisations
from ldm import send
from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.pace import Pace
from ldm.callbacks.saving import SaveStates
from ldm.config import CONF
from ldm.construct import construct
from ldm.data.augment import shifts, turns_and_colours
from ldm.data.codes import CodeData
from ldm.diffusion.discrete import released
from ldm.generators.autoregressive import load_clip
from ldm.loggers.metrics_log import MetricsLog
from ldm.models.clip import CLIP, VisionTransformer
from ldm.randomness import keyed
from ldm.stages.autoencoder import AutoencoderStage
from ldm.stages.clip import ContrastiveStage
from ldm.stages.diffusion import LatentDiffusion
from ldm.stages.image_tokenizer import TokenizerStage
from ldm.stages.text_to_codes import DiscreteDiffusionStage
from tests.autoregressive.tiny import make_stage, write_clip
from tests.stages.test_discrete_diffusion import NET

STEPS, LOGGED = 4, 3  # the third step is logged


class MetaAccelerator(CPUAccelerator):
    """Lets a Trainer compute on the meta device."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == "meta"


@pytest.fixture
def train_on_meta(make_trainer, monkeypatch, tmp_path):
    """`train_on_meta(stage, data)`: what a training on a device does, step by step."""
    # neither knows a meta device
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())

    def run(stage, data) -> tuple[BySteps, Synchronisations]:
        device, mode = torch.device("meta"), Synchronisations("meta")
        by_steps = BySteps(mode)
        saving = SaveStates(folder=tmp_path / "states", every=100)
        trainer = make_trainer(
            STEPS,
            *(EMA(decay=0.9), Gradients(clip=1.0), Pace(), saving, by_steps),
            accelerator="auto",
            strategy=SingleDeviceStrategy(device, accelerator=MetaAccelerator()),
            log_every_n_steps=LOGGED,
            logger=MetricsLog(tmp_path / "metrics.jsonl"),
        )
        saving._saved_step = STEPS  # values that are not there can't be saved
        with mode:
            trainer.fit(stage, datamodule=data)
        return by_steps, mode

    return run


@pytest.fixture
def stages(diffusion_stage, codec, build_network, specs, adamw, tokenizer):
    """A stage of each kind, by its name."""
    common = {"optimizer": adamw, "decay": lambda step: 1.0}

    def clip() -> ContrastiveStage:
        image = VisionTransformer(
            image_size=16, patch_size=8, width=16, num_layers=1, num_heads=2, embed_dim=8
        )
        net = CLIP(text=build_network(specs["text_encoder"], 0), image=image)
        return ContrastiveStage(net=net, tokenizer=tokenizer, **common)

    def autoencoder() -> AutoencoderStage:
        net = build_network(specs["autoencoder"], 1)
        return AutoencoderStage(net=net, kl_weight=1e-4, augment=turns_and_colours, **common)

    def denoiser(**options) -> LatentDiffusion:
        stage = diffusion_stage(**options)
        stage.codec = deepcopy(codec)  # it moves to the device
        return stage

    node = OmegaConf.to_container(OmegaConf.load(CONF / "process" / "sd15.yaml"), resolve=True)
    table = {"process": construct(node)}
    return {
        "denoiser": lambda: denoiser(net=construct(specs["backbone"])),
        "denoiser of a table": lambda: denoiser(**table),
        "autoencoder": autoencoder,
        "clip": clip,
    }


@pytest.fixture
def systems(codes, codec, clip, pictures, build_network, image_tokenizer, adamw):
    """A stage of each kind on codes and its data, by its name; the frozen parts move to the device."""
    common = {"optimizer": adamw, "decay": lambda step: 1.0, "seed": 3}
    data = partial(CodeData, pictures=pictures, codes=codes)

    def discrete() -> DiscreteDiffusionStage:
        return DiscreteDiffusionStage(
            net=build_network(NET, 3),
            process=released(num_codes=16, num_steps=10),
            sampling={"steps": 4, "scale": 2.0, "truncation": 0.9},
            **{"codes": deepcopy(codes), "codec": deepcopy(codec), "caption_drop": 0.5},
            **common,
        )

    systems = {
        name: (partial(make_stage, name, deepcopy(codes), deepcopy(clip), adamw), partial(data, embedder=own))
        for name, own in {"dalle": None, "cogview": None, "clipgen": clip}.items()
    }
    tokenizer = partial(TokenizerStage, net=build_network(image_tokenizer, 11), augment=shifts, **common)
    return systems | {
        "vqdiffusion": (discrete, partial(data, codec=codec)),
        "image tokenizer": (tokenizer, lambda: pictures),
    }


@pytest.fixture(scope="session")
def clip(tokenizer, tmp_path_factory):
    return load_clip(bundle=str(write_clip(tmp_path_factory.mktemp("bundles") / "clip", tokenizer)))


@pytest.mark.parametrize("name", ["dalle", "cogview", "clipgen", "vqdiffusion", "image tokenizer"])
def test_a_steady_step_of_a_system_on_codes_waits_for_nothing(train_on_meta, systems, name):
    stage, data = systems[name]
    by_steps, mode = train_on_meta(stage(), data())
    waited = {number: found for number, found in enumerate(by_steps.steps) if found}
    assert waited.keys() - {0, 1} == {LOGGED}, waited
    assert torch.float64 not in mode.dtypes


@pytest.mark.parametrize("name", ["denoiser", "denoiser of a table", "autoencoder", "clip"])
def test_a_steady_step_waits_for_nothing_and_stays_on_its_device(
    train_on_meta, stages, latents, pictures, name
):
    """An operator on tensors of two devices would raise; a number in float64 would be slow on a GPU."""
    by_steps, mode = train_on_meta(stages[name](), latents if "denoiser" in name else pictures)
    waited = {number: found for number, found in enumerate(by_steps.steps) if found}
    assert waited.keys() - {0, 1} == {LOGGED}, waited  # the first step moves what is moved once
    assert torch.float64 not in mode.dtypes


def test_what_the_host_waits_for_is_counted():
    with Synchronisations("meta") as mode:
        there = torch.ones(3, device="meta")
        there.to("cpu", non_blocking=True), send(torch.ones(2), there.device)
        assert mode.found == []
        there.sum().item(), there.nonzero(), there.cpu(), torch.ones(3).to("meta"), bool((there > 0).any())
    assert [name.split(".")[1] for name in mode.found] == [
        *("_local_scalar_dense", "nonzero", "_to_copy", "_to_copy", "_local_scalar_dense")
    ]


def test_noise_of_a_large_batch_costs_the_host_a_hundred_launches():
    """At ten microseconds each these are 2 ms, whatever the batch; the numbers stay on the device."""
    launched = {}
    for count in (4, 256):
        with Synchronisations("meta") as mode:
            keyed.normal(
                (4, 64, 64),
                seed=0,
                positions=torch.arange(count),
                stream="noise",
                device=torch.device("meta"),
            )
        assert mode.found == []
        launched[count] = mode.launched
    assert launched[4] == launched[256] < 200, launched
