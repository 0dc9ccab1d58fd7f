"""The recipe of diffusers' text-to-image training script over its own classes, and what a careful user adds.

After examples/text_to_image/train_text_to_image.py of diffusers 0.42: pictures resized (Lanczos), cropped and
normalised by torchvision, encoded together with their captions in every step; noise predicted at uniformly
distributed timesteps, mean squared error; AdamW at a constant rate, gradients clipped to a norm of 1, EMA.
Weights are float32 and mixed precision is autocast, as accelerate does it; accelerate itself is left out.
"""

import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_density_for_timestep_sampling, compute_snr
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.random_pipeline import SCHEDULER
from ldm.data.shards import PictureDataset

CLIP = 1.0  # --max_grad_norm
TABLE = {key: SCHEDULER[key] for key in ("beta_schedule", "beta_start", "beta_end")}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of the script by their meaning; the defaults are the script's.

    Attributes:
        bfloat16: --mixed_precision=bf16.
        cached: pictures and captions are encoded once and not at every step.
        prediction: "flow" is rectified flow with logit-normal timesteps, as in its scripts for SD3.
        snr_gamma: min-SNR weighting (Hang et al. 2023); None weighs all timesteps alike.
        ema_warmup: the EMA's decay rises as 1 - (1 + n)^(-3/4), and not as (1 + n) / (10 + n).
        caption_drop: share of captions that are replaced by the empty one; the script has no such option.
    """

    lr: float = 1e-4
    weight_decay: float = 1e-2
    decay: float = 0.9999
    bfloat16: bool = False
    cached: bool = False
    prediction: Literal["epsilon", "v_prediction", "flow"] = "epsilon"
    snr_gamma: float | None = None
    ema_warmup: bool = False
    caption_drop: float = 0.0


class Encoded(NamedTuple):
    """A batch as the U-Net is trained on it: scaled latents, b c h w, and text states, b n d."""

    latents: Tensor
    states: Tensor


class Pictures(Dataset[tuple[Tensor, str, int]]):
    """Pictures as the script prepares them: values in [-1, 1], a caption by chance, and the number."""

    def __init__(self, pictures: PictureDataset) -> None:
        self.pictures = pictures
        lanczos = transforms.InterpolationMode.LANCZOS
        self.transform = transforms.Compose(
            [
                transforms.Resize(pictures.size, interpolation=lanczos),
                transforms.CenterCrop(pictures.size),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Tensor, str, int]:
        with Image.open(io.BytesIO(self.pictures.reader.image(number))) as picture:
            pixels = self.transform(picture.convert("RGB"))
        return pixels, random.choice(self.pictures.captions(number)), number


def batches(pictures: PictureDataset, batch_size: int) -> Iterator[tuple[Tensor, Sequence[str], Tensor]]:
    """Pixels, captions and numbers, shuffled anew in each epoch, without end."""
    loader = DataLoader(Pictures(pictures), batch_size=batch_size, shuffle=True)
    while True:
        yield from loader


class Training:
    """A U-Net and what is kept of its training.

    Args:
        net: trained in place, on the device where it is.
        null: text states of the empty caption, 1 n d; used where captions are dropped.
    """

    def __init__(self, net: UNet2DConditionModel, recipe: Recipe, null: Tensor | None = None) -> None:
        self.net, self.recipe, self.null = net.train(), recipe, null
        decayed = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        self.optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.999), eps=1e-8, **decayed)
        self.ema = EMAModel(
            net.parameters(),
            decay=recipe.decay,
            use_ema_warmup=recipe.ema_warmup,
            power=3 / 4,
            model_cls=UNet2DConditionModel,
            model_config=net.config,
        )
        self.steps = 0
        self.scheduler: Any
        if recipe.prediction == "flow":
            self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        else:
            self.scheduler = DDPMScheduler(1000, prediction_type=recipe.prediction, **TABLE)

    def step(self, batch: Encoded) -> float:
        """One step; returns the loss, which the script logs at every step, too."""
        latents, states = batch
        if self.recipe.caption_drop and self.null is not None:
            dropped = torch.rand(len(states), 1, 1, device=states.device) < self.recipe.caption_drop
            states = torch.where(dropped, self.null.to(states), states)
        noisy, times, target, weight = self.task(latents)
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            predicted = self.net(noisy, times, states, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), target.float(), reduction="none")
        loss = (loss.mean(dim=(1, 2, 3)) * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.net.parameters())
        self.steps += 1
        return loss.item()

    def task(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, the network's timesteps, its target, and the weight of each sample."""
        noise, count, device = torch.randn_like(latents), len(latents), latents.device
        weight = torch.ones(count, device=device)
        if self.recipe.prediction == "flow":
            draw = compute_density_for_timestep_sampling("logit_normal", count, logit_mean=0.0, logit_std=1.0)
            numbers = (draw * 1000).long()
            sigmas = self.scheduler.sigmas[numbers].to(device).view(-1, 1, 1, 1)
            times = self.scheduler.timesteps[numbers].to(device)
            return (1 - sigmas) * latents + sigmas * noise, times, noise - latents, weight
        times = torch.randint(0, 1000, (count,), device=device)
        noisy = self.scheduler.add_noise(latents, noise, times)
        is_v = self.recipe.prediction == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, times) if is_v else noise
        if self.recipe.snr_gamma is not None:
            snr = compute_snr(self.scheduler, times)
            weight = snr.clamp(max=self.recipe.snr_gamma) / (snr + 1 if is_v else snr)
        return noisy, times, target, weight

    def state_dict(self) -> dict[str, Any]:
        """Steps, weights, optimizer and EMA. The order of the data is not saved: it starts anew."""
        parts = {"net": self.net, "optimizer": self.optimizer, "ema": self.ema}
        return {"steps": self.steps} | {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was called."""
        self.steps = state["steps"]
        for name in ("net", "optimizer", "ema"):
            getattr(self, name).load_state_dict(state[name])


Encode = Callable[[Tensor, Sequence[str]], Encoded]


class Cache:
    """What a careful user computes before the first step: moments of all pictures, states of all captions.

    Args:
        moments: mean and standard deviation of the latents of pictures in [-1, 1].
        states: text states of captions.
    """

    def __init__(
        self,
        pictures: PictureDataset,
        moments: Callable[[Tensor], tuple[Tensor, Tensor]],
        states: Callable[[Sequence[str]], Tensor],
    ) -> None:
        found, self.rows, texts = [], [], []
        for number in range(len(pictures)):
            self.rows.append(range(len(texts), len(texts) + len(pictures.captions(number))))
            texts += pictures.captions(number)
        for pixels, _, _ in DataLoader(Pictures(pictures), batch_size=16):
            found.append([part.half() for part in moments(pixels)])
        self.mean, self.std = (torch.cat(parts) for parts in zip(*found, strict=True))
        chunks = (texts[start : start + 64] for start in range(0, len(texts), 64))
        self.states = torch.cat([states(chunk).half() for chunk in chunks])

    def batches(self, batch_size: int) -> Iterator[Encoded]:
        """Sampled latents and the states of one caption each, shuffled anew in each epoch, without end."""
        while True:
            for numbers in torch.randperm(len(self.rows)).split(batch_size):
                rows = [random.choice(self.rows[number]) for number in numbers.tolist()]
                mean, std = self.mean[numbers].float(), self.std[numbers].float()
                yield Encoded(mean + std * torch.randn_like(mean), self.states[rows].float())
