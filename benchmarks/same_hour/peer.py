"""A side of diffusers: trains a U-Net of our parameter count by its recipe, and generates listed pictures.

    python -m benchmarks.same_hour.peer train|generate '<json of the task>'

The frozen autoencoder, text encoder and pictures are ours. What the process does from its start counts.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from benchmarks.configs import training_config
from benchmarks.diffusers_recipe import TABLE, Cache, Encoded, Recipe, Training, batches
from benchmarks.pipeline_vs_diffusers import age
from benchmarks.same_hour.race import generate_listed, samples_of_step, used
from ldm.codec import Codec
from ldm.config import build
from ldm.data.datamodule import PictureData
from ldm.models.meta_init import meta_init

CAREFUL = Recipe(bfloat16=True, cached=True, ema_warmup=True, caption_drop=0.1)
RECIPES = {
    "recipe": Recipe(),
    "careful": replace(CAREFUL, prediction="flow"),
    "careful_v": replace(CAREFUL, prediction="v_prediction", snr_gamma=5.0),
}
SAVED = 60.0  # seconds from one checkpoint to the next
STEPS = 50  # of its pipelines, by default


def unet_of(count: int, *, latents: tuple[int, int], context: int) -> UNet2DConditionModel:
    """Two levels with attention in both, as wide as comes nearest to a number of parameters."""
    channels, side = latents
    config: dict[str, Any] = {
        "sample_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "cross_attention_dim": context,
    }

    def of_width(width: int) -> dict[str, Any]:
        return config | {"block_out_channels": [width, width], "attention_head_dim": width // 32}

    def distance(width: int) -> int:
        with torch.device("meta"):
            net = UNet2DConditionModel(**of_width(width))
        return abs(sum(parameter.numel() for parameter in net.parameters()) - count)

    best = min(range(32, 417, 32), key=distance)
    return UNet2DConditionModel(**of_width(best))


class Peer:
    """A task: its networks, and where it keeps what.

    Args:
        task: `piece` (a folder), `side` (a recipe), `seed`, `seconds`, `overrides` of our training.
        clock: seconds that this process has used.
    """

    def __init__(self, task: dict[str, Any], clock: Callable[[], float] = age) -> None:
        self.clock, self.piece, self.recipe = clock, Path(task["piece"]), RECIPES[task["side"]]
        self.seconds, self.seed = float(task["seconds"]), int(task["seed"])
        self.config = training_config(task["overrides"])
        self.codec: Codec = build(self.config.codec)
        with meta_init():
            ours = build(self.config.backbone)
        self.size = self.config.data.size
        channels, side, _ = self.codec.latent_shape(self.size)
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        self.net = unet_of(
            sum(parameter.numel() for parameter in ours.parameters()),
            latents=(channels, side),
            context=self.codec.text_encoder.width,
        )

    def encoded(self, batch: tuple[Tensor, Sequence[str], Tensor]) -> Encoded:
        """Pixels in [-1, 1] and captions as the U-Net gets them."""
        mean, std = self.moments(batch[0])
        return Encoded(mean + std * torch.randn_like(mean), self.codec.encode_prompts(batch[1]))

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents."""
        posterior = self.codec.encode_images(((pixels + 1) * 127.5).round().to(torch.uint8))
        return posterior.mean, (0.5 * posterior.logvar).exp()

    def source(self) -> Iterator[Encoded]:
        """Batches without end, encoded at each step or once."""
        batch = samples_of_step(self.config)
        data = PictureData(root=self.config.data.root, size=self.size, batch_size=batch)
        if self.recipe.cached:
            cache = Cache(data.train, self.moments, self.codec.encode_prompts)
            return cache.batches(batch)
        return map(self.encoded, batches(data.train, batch))

    @torch.no_grad()
    def null(self) -> Tensor:
        """Text states of the empty caption."""
        return self.codec.encode_prompts([""])

    def train(self) -> None:
        """Trains until the piece has used its seconds; a killed training continues from its checkpoint."""
        before, state, saved = used(self.piece), self.piece / "state.pt", 0.0
        training = Training(self.net, self.recipe, self.null())
        if state.is_file():
            training.load_state_dict(torch.load(state, weights_only=True))
            torch.manual_seed(hash((self.seed, training.steps)))  # not the batches that came already
        loss = 0.0
        for batch in self.source():
            if (now := before + self.clock()) >= self.seconds:
                break
            loss = training.step(batch)
            if now - saved >= SAVED:
                saved = now
                save(training.state_dict(), state)
        training.ema.copy_to(training.net.parameters())
        training.net.save_pretrained(self.piece / "unet")
        size = sum(parameter.numel() for parameter in training.net.parameters())
        found = {"steps": training.steps, "loss": loss, "parameters": size}
        (self.piece / "training.json").write_text(json.dumps(found))
        state.unlink(missing_ok=True)

    @torch.inference_mode()
    def pictures(self, captions: Sequence[str], seeds: Sequence[int], *, scale: float) -> Tensor:
        """Pictures of a trained U-Net, with its classifier-free guidance: uint8, b 3 h w."""
        noise = [
            torch.randn(self.codec.latent_shape(self.size), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        x = torch.stack(noise)
        is_flow = self.recipe.prediction == "flow"
        scheduler: Any = (
            FlowMatchEulerDiscreteScheduler()
            if is_flow
            else DDIMScheduler(
                1000,
                **TABLE,
                prediction_type=self.recipe.prediction,
                clip_sample=False,
                timestep_spacing="trailing",
            )
        )
        scheduler.set_timesteps(STEPS)
        context = torch.cat([self.null().expand(len(x), -1, -1), self.codec.encode_prompts(captions)])
        for t in scheduler.timesteps:
            plain, conditional = self.net(torch.cat([x, x]), t, context, return_dict=False)[0].chunk(2)
            x = scheduler.step(plain + scale * (conditional - plain), t, x, return_dict=False)[0]
        return self.codec.decode(x)

    def generate(self, prompts: Path, folder: Path, *, scale: float) -> None:
        """Generates what a list names."""
        self.net = UNet2DConditionModel.from_pretrained(self.piece / "unet").eval()
        generate_listed(prompts, folder, lambda captions, seeds: self.pictures(captions, seeds, scale=scale))


def save(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint, whole or not."""
    draft = path.with_suffix(".draft")
    torch.save(state, draft)
    draft.rename(path)


def main() -> None:
    """Trains or generates, as the command line says."""
    what, task = sys.argv[1], json.loads(sys.argv[2])
    peer = Peer(task)
    if what == "train":
        return peer.train()
    peer.generate(Path(task["prompts"]), Path(task["folder"]), scale=task["scale"])


if __name__ == "__main__":
    main()
