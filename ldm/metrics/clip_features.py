"""A published CLIP as a judge of pictures and texts."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import open_clip
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm import UserError
from ldm.metrics.features import FeatureNetwork
from ldm.metrics.weights import digest, load_strictly, locate, read_state
from ldm.tokenizers import clip_bpe

ARCHITECTURES = MappingProxyType(  # open_clip's names
    {
        "clip_vit_b32": "ViT-B-32-quickgelu",
        "clip_vit_l14": "ViT-L-14-quickgelu",
        "clip_vit_l14_336": "ViT-L-14-336-quickgelu",  # the one of CMMD
    }
)
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # in files all the same


class ClipFeatures(FeatureNetwork):
    """Picture features `<name>_image` and text features `<name>_text` of one of OpenAI's CLIPs, not scaled.

    Pictures are resized bicubically to the network's square and rounded to 8 bit, as Radford et al. 2021 do.

    Args:
        name: which CLIP, a key of `ARCHITECTURES`.
        weights: path of its file; by default where `fetch` puts it.
        sha256: what that file must have; by default the published file's.

    Raises:
        UserError: an unknown name, no weights, other weights, weights of another network.
    """

    rounded = True

    def __init__(self, *, name: str, weights: str | None = None, sha256: str | None = None) -> None:
        super().__init__()
        if name not in ARCHITECTURES:
            raise UserError(f"{name=} is not one of {', '.join(ARCHITECTURES)}")
        path = locate(name, weights, sha256=sha256)
        self.name, self.sha256 = name, digest(path)
        self.net = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURES[name]))
        load_strictly(self.net, _read_clip(path), source=path)
        self.tokenizer = clip_bpe()
        self.size = self.net.visual.image_size[0]
        self.dims = {f"{name}_image": self.net.visual.output_dim}
        self._normalise_by(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        self.eval().requires_grad_(False)

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b _"]:
        return self.net.encode_image(self.normalised(images))

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Float[Tensor, "b _"]:
        """Features of texts, cut to the 77 tokens that CLIP reads."""
        return self.net.encode_text(self.tokenizer.encode(texts).to(self.device))


def _read_clip(path: Path) -> dict[str, Tensor]:
    """The state in float32; OpenAI publishes TorchScript in half precision, others plain tensors."""
    scripted = zipfile.is_zipfile(path) and any(
        name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()
    )
    state = torch.jit.load(path, map_location="cpu").state_dict() if scripted else read_state(path)
    return {name: value.float() for name, value in state.items() if name not in NO_WEIGHTS}
