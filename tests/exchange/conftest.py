"""Foreign weights at tiny size: a Stable Diffusion of diffusers' own classes, saved by diffusers itself."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.checkpoints.bundle import Bundle
from ldm.exchange.compvis import Asked
from ldm.exchange.diffusers import CONFIGS, from_configs
from ldm.exchange.exporting import open_export, write_single_file
from ldm.exchange.folder import write_vocabulary
from ldm.exchange.importing import import_weights, locate
from ldm.io.fields import Fields
from ldm.tokenizers import Tokenizer

UNET = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
}
TEXT = {
    "vocab_size": 640,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 638,
    "eos_token_id": 639,
    "pad_token_id": 639,
}
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def with_scheduler(folder: Path, scheduler: Any) -> Path:
    """A pipeline's folder, whose scheduler is replaced."""
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def save_pipeline(tokenizer: Tokenizer, tmp_path_factory) -> Callable[..., Path]:
    """`save_pipeline(folder, unet={...}, scheduler=...)`: a random pipeline, saved as diffusers saves it."""

    def write(folder: Path, unet: dict[str, Any]) -> Path:
        torch.manual_seed(3)
        write_vocabulary(tokenizer, folder / "own")
        pipeline = diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "own"),
            unet=diffusers.UNet2DConditionModel(**(UNET | unet)),
            scheduler=diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder / "saved")
        return folder / "saved"

    plain = cache(lambda: write(tmp_path_factory.mktemp("pipelines"), {}))

    def save(folder: Path, *, unet: dict[str, Any] | None = None, scheduler: Any = None) -> Path:
        saved = write(folder, unet) if unet else shutil.copytree(plain(), folder / "saved")
        return with_scheduler(saved, scheduler) if scheduler else saved

    return save


@pytest.fixture(scope="session")
def saved(save_pipeline, tmp_path_factory) -> Path:
    """A pipeline's folder. Read it, never write to it."""
    return save_pipeline(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    """A pipeline's folder, to be damaged."""
    return shutil.copytree(saved, tmp_path / "copied")


@pytest.fixture(scope="session")
def tiny(tokenizer) -> Callable[..., Any]:
    """`tiny(path, ...)`: what a path is imported as; a file that tells nothing counts as one of `saved`."""
    configs = dict(zip(CONFIGS, (UNET, VAE, TEXT, SCHEDULE), strict=True))
    architecture = from_configs({name: Fields(name, values) for name, values in configs.items()})

    def read(path: Path | str, **options: Any) -> Any:
        told = replace(architecture, process=options.pop("process", architecture.process))
        asked = Asked(architecture=told, tokenizer=lambda: tokenizer, **options)
        return import_weights(locate(str(path)), asked)

    return read


@pytest.fixture(scope="session")
def bundle_of(tiny, tmp_path_factory) -> Callable[..., Path]:
    """`bundle_of(path, ...)`: the bundle that a path is imported as."""

    def write(path: Path, **options: Any) -> Path:
        out = tmp_path_factory.mktemp("imported") / "bundle"
        return tiny(path, **options).write(out, locate(str(path)), dtype=torch.float32)

    return write


@pytest.fixture(scope="session")
def imported(bundle_of, saved) -> Path:
    """The bundle of `saved`. Read it, never write to it."""
    return bundle_of(saved)


@pytest.fixture(scope="session")
def file(imported, tmp_path_factory) -> Path:
    """A single file of ours. Read it, never write to it."""
    out = tmp_path_factory.mktemp("files") / "one.safetensors"
    return write_single_file(open_export(Bundle.open(imported), {}), out, dtype=torch.float32)


@pytest.fixture
def state(file) -> dict[str, torch.Tensor]:
    return load_file(file)
