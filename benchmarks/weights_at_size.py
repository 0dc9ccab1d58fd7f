"""Stable Diffusion 1.5 and CLIP at their real sizes, random weights: the same numbers here as there.

    python -m benchmarks.weights_at_size            all four
    python -m benchmarks.weights_at_size unet vae   some

Prints the largest difference from diffusers, transformers or open_clip in float32. Each part is written by
its own library to a temporary folder, which takes up to 3.5 GB of disk, and read as `ldm.export` reads it.
Two copies of a U-Net are never in memory at once: it takes 5 GB at most.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.checkpoints.bundle import Part
from ldm.construct import construct
from ldm.exchange.clip import import_openclip
from ldm.exchange.folder import import_network
from ldm.exchange.weights import Source, Weights

LATENTS = 16  # side; the weights do not know it
VAE_LEVELS = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
LIMIT = 1e-4


def network(part: Part) -> nn.Module:
    """A part as `Bundle.network` builds it."""
    with torch.device("meta"):
        module = construct(part.spec)
    module.load_state_dict(dict(part.state), assign=True)
    return module.eval()


def largest(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of any element."""
    return (ours - theirs).abs().max().item()


def unet(folder: Path) -> dict[str, float]:
    """The U-Net's output at two times."""
    theirs = diffusers.UNet2DConditionModel(cross_attention_dim=768).eval()
    x, context = torch.randn(2, 4, LATENTS, LATENTS), torch.randn(2, 77, 768)
    t = torch.tensor([1.0, 981.0])
    expected = theirs(x, t, context).sample
    theirs.save_pretrained(folder)
    del theirs  # 3.4 GB: ours is built where it was
    ours = network(import_network(folder, text_state="last").parts["backbone"])
    return {"U-Net output": largest(ours(x, t, context), expected)}


def vae(folder: Path) -> dict[str, float]:
    """Moments of a picture, and the picture of latents."""
    theirs = diffusers.AutoencoderKL(**VAE_LEVELS).eval()
    theirs.save_pretrained(folder)
    ours = network(import_network(folder, text_state="last").parts["autoencoder"])
    images, latents = torch.rand(1, 3, 8 * LATENTS, 8 * LATENTS) * 2 - 1, torch.randn(1, 4, LATENTS, LATENTS)
    posterior, expected = ours.posterior(images), theirs.encode(images).latent_dist
    return {
        "VAE mean": largest(posterior.mean, expected.mean),
        "VAE log-variance": largest(posterior.logvar, expected.logvar),
        "VAE decoding": largest(ours.decode(latents), theirs.decode(latents).sample),
    }


def text(folder: Path) -> dict[str, float]:
    """The last and the penultimate state of the text encoder, under the last norm."""
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    theirs = CLIPTextModel(config).eval()
    theirs.save_pretrained(folder)
    tokens = torch.randint(49_000, (4, 77))
    tokens[:, 0], tokens[:, 40:] = 49_406, 49_407
    told = theirs(tokens, output_hidden_states=True)
    expected = {
        "last": told.last_hidden_state,
        "penultimate": theirs.final_layer_norm(told.hidden_states[-2]),
    }
    differences = {}
    for state, states in expected.items():
        ours = network(import_network(folder, text_state=state).parts["text_encoder"])
        differences[f"text states, {state}"] = largest(ours(tokens).states, states)
    return differences


def clip(folder: Path) -> dict[str, float]:
    """Both features of open_clip's ViT-L/14 with OpenAI's activation."""
    theirs = open_clip.create_model("ViT-L-14-quickgelu", pretrained=None).eval()
    path = folder / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, path)
    source = Source(path=path, name=str(path))
    towers = import_openclip(source, Weights(path), model="ViT-L-14-quickgelu").parts
    ours = {name: network(part) for name, part in towers.items()}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ours["image_encoder"].pixels)
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    tokens = open_clip.tokenize(["a red apple", "a cat with a hat"])
    return {
        "CLIP text": largest(ours["text_encoder"](tokens).pooled, theirs.encode_text(tokens)),
        "CLIP picture": largest(
            ours["image_encoder"](images), theirs.encode_image(((images + 1) / 2 - mean) / std)
        ),
    }


PARTS: dict[str, Callable[[Path], dict[str, float]]] = {"unet": unet, "vae": vae, "text": text, "clip": clip}


def main(names: list[str]) -> int:
    """Prints the table; 1 if a difference is above LIMIT."""
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    worst = 0.0
    for name in names or list(PARTS):
        torch.manual_seed(0)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for what, difference in PARTS[name](Path(folder)).items():
                print(f"{what:24} {difference:.1e}")
                worst = max(worst, difference)
        print(f"{'':24} ({time.perf_counter() - started:.0f} s)")
    print(f"largest difference {worst:.1e}, limit {LIMIT:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
