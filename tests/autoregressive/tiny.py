"""Tiny systems on codes, all parts real: a tokenizer of pictures, a CLIP, and the networks between them."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints.bundle import Part
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.codec import PictureCodes
from ldm.construct import construct
from ldm.generators.autoregressive import ClipPair
from ldm.generators.token_loop import Choice
from ldm.stages.autoregressive import AutoregressiveStage, apart, together
from tests.fixtures import SIZE, TEXT_ENCODER, network

IMAGE_ENCODER = {
    "_target_": "ldm.models.clip.VisionTransformer",
    "image_size": SIZE,
    "patch_size": 8,
    "width": 16,
    "num_layers": 1,
    "num_heads": 2,
    "embed_dim": 8,
}
NETWORKS = "ldm.models.autoregressive"
CODES = {"num_codes": 16, "grid": 4}  # of the tiny tokenizer of pictures
TRUNK = {"width": 16, "depth": 2, "num_heads": 2}
TOKENS = {"vocab_size": 640, "text_length": 16}
BACKBONES: dict[str, dict[str, Any]] = {
    "dalle": {"_target_": f"{NETWORKS}.DalleTransformer", **TOKENS, **CODES, **TRUNK},
    "cogview": {"_target_": f"{NETWORKS}.CogViewTransformer", **TOKENS, **CODES, **TRUNK},
    "clipgen": {"_target_": f"{NETWORKS}.PrefixTransformer", "prefix_dim": 8, **CODES, **TRUNK},
}
SIZES = TOKENS | CODES | TRUNK
OPTIONS: dict[str, dict[str, Any]] = {
    "dalle": {"loss": partial(apart, text=0.125)},
    "cogview": {"loss": partial(together, text_weight=1.0), "captioning": 0.3, "dropout": 0.1},
    "clipgen": {"loss": partial(apart, text=0.0), "embedding_weight": 0.5, "dropout": 0.1},
}


def write_clip(path: Path, tokenizer: Any) -> Path:
    """A bundle of both towers of a tiny CLIP with random weights."""
    specs = {"text_encoder": TEXT_ENCODER, "image_encoder": IMAGE_ENCODER}
    parts = {
        name: Part(spec=spec, state=network(spec, seed).state_dict())
        for seed, (name, spec) in enumerate(specs.items())
    }
    return write_bundle(path, parts=parts, tokenizer=tokenizer, settings={"origin": {}})


def make_stage(system: str, codes: PictureCodes, clip: ClipPair, optimizer: Any, **options: Any) -> Any:
    """The stage of a system, always with the same first weights."""
    torch.manual_seed(5)
    parts = {"net": construct(BACKBONES[system]), "codes": codes, "clip": clip, "choice": Choice()}
    shared = {"optimizer": optimizer, "decay": lambda step: 1.0, "seed": 3}
    return AutoregressiveStage(**(parts | shared | OPTIONS[system] | options))
