"""CLIP: a text transformer and a vision transformer trained to agree (Radford et al. 2021)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import UserError
from ldm.models.attention import SelfAttention
from ldm.models.blocks import apply

Activation = Callable[[Tensor], Tensor]

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
MAX_LOGIT_SCALE = math.log(100)  # the same place
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, in units of [0, 1]
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class TextOutput(NamedTuple):
    """Outputs of a text encoder: one state per token, and one vector per text."""

    states: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b e"]


class ClipOutput(NamedTuple):
    """Unit features of pictures and texts, and the factor that turns their cosines into logits."""

    image_features: Float[Tensor, "b e"]
    text_features: Float[Tensor, "b e"]
    scale: Float[Tensor, ""]


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The exact Gaussian error linear unit."""
    return F.gelu(x)


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x sigmoid(1.702 x), the approximation (Hendrycks & Gimpel 2016) in OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two linear layers, four times the width between them."""

    def __init__(self, width: int, *, activation: Activation) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 4 * width)
        self.activation = activation
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Every token by itself."""
        return self.narrow(self.activation(self.wide(x)))


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, *, num_heads: int, causal: bool, activation: Activation) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads=num_heads, qkv_bias=True, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, activation=activation)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Tokens after both residual branches."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TextTransformer(nn.Module):
    """Causal transformer over token ids.

    The end token is the last id of the vocabulary, as in every tokenizer of `ldm.tokenizers`. Without
    `embed_dim` there is no projection, as in the text encoder of Stable Diffusion 1.x, and `pooled` is the
    end token's state. `checkpointing` is activation checkpointing of the layers.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        width: int,
        num_layers: int,
        num_heads: int,
        embed_dim: int | None = None,
        activation: Activation = gelu,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.width = width
        self.eot_id = vocab_size - 1
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads=num_heads, causal=True, activation=activation) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False) if embed_dim else nn.Identity()
        self._initialise()

    def forward(self, tokens: Int[Tensor, "b n"]) -> TextOutput:
        """States and pooled vectors of token ids; columns after the end tokens may be left out."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]  # b n d
        # no mask for pads: they follow the end token, and attention is causal
        for block in self.blocks:
            x = apply(block, x, recompute=self.checkpointing)
        states = self.norm(x)
        ends = (tokens == self.eot_id).int().argmax(dim=1)  # the first one: pads may be end tokens too
        return TextOutput(states=states, pooled=self.projection(states[torch.arange(ends.shape[0]), ends]))

    def _initialise(self) -> None:
        nn.init.normal_(self.tokens.weight, std=0.02)  # this and the next as in OpenAI's CLIP
        nn.init.normal_(self.positions, std=0.01)
        initialise_blocks(self.blocks, width=self.width)
        if isinstance(self.projection, nn.Linear):
            # keeps the variance of a unit-variance state
            nn.init.normal_(self.projection.weight, std=self.width**-0.5)


class VisionTransformer(nn.Module):
    """Transformer over patches of a square picture; the class token's state, projected, is the feature.

    Pictures in [-1, 1] are normalised by the mean and standard deviation that the weights expect (`pixels`,
    in units of [0, 1]). `checkpointing` is activation checkpointing of the layers.
    """

    def __init__(  # one parameter per key of conf/image_encoder/*.yaml
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        embed_dim: int,
        activation: Activation = gelu,
        pixels: Sequence[Sequence[float]] = (PIXEL_MEAN, PIXEL_STD),
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        if image_size % patch_size:
            raise UserError(f"{image_size=} is not a multiple of {patch_size=}: change one of them")
        self.image_size = image_size
        self.width = width
        self.pixels = pixels
        # no bias: the positions, added next, would absorb it
        self.patches = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty((image_size // patch_size) ** 2 + 1, width))
        self.norm_in = nn.LayerNorm(width)  # before the first block too, unlike ViT: OpenAI's CLIP has it
        self.blocks = nn.ModuleList(
            Block(width, num_heads=num_heads, causal=False, activation=activation) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self._initialise()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Features of pictures in [-1, 1], not normalised."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise UserError(
                f"pictures of {tuple(images.shape[-2:])} pixels do not fit this encoder: "
                f"resize them to {self.image_size} x {self.image_size}"
            )
        x = rearrange(self.patches(self._normalise(images)), "b d h w -> b (h w) d")
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)  # b 1+n d
        x = self.norm_in(x + self.positions)
        for block in self.blocks:
            x = apply(block, x, recompute=self.checkpointing)
        return self.projection(self.norm_out(x[:, 0]))

    def _normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in self.pixels)
        return (images - (2 * mean - 1)) / (2 * std)  # ((images + 1) / 2 - mean) / std in two operations

    def _initialise(self) -> None:
        std = self.width**-0.5
        nn.init.normal_(self.class_token, std=std)  # these three as in OpenAI's CLIP
        nn.init.normal_(self.positions, std=std)
        nn.init.normal_(self.projection.weight, std=std)
        initialise_blocks(self.blocks, width=self.width)


class CLIP(nn.Module):
    """A text and an image encoder into one space, and the learned temperature of the contrastive loss."""

    def __init__(self, *, text: TextTransformer, image: VisionTransformer) -> None:
        super().__init__()
        self.text = text
        self.image = image
        # the logarithm is learned: a step changes the temperature by a factor, whatever its size
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def forward(self, images: Float[Tensor, "b 3 h w"], tokens: Int[Tensor, "b n"]) -> ClipOutput:
        """Features and scale, as `contrastive_loss` takes them."""
        return ClipOutput(
            image_features=self.encode_images(images),
            text_features=self.encode_texts(tokens),
            scale=self.logit_scale.exp(),
        )

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Features of length 1 of pictures in [-1, 1]."""
        # float32 here and below: bfloat16 cosines near 1 are 0.004 apart
        return F.normalize(self.image(images).float(), dim=-1)

    def encode_texts(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b e"]:
        """Features of length 1 of tokenised texts."""
        return F.normalize(self.text(tokens).pooled.float(), dim=-1)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Limits the factor to 100: on the weight, since a clamp in `forward` would leave it no gradient."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def contrastive_loss(
    image_features: Float[Tensor, "b e"],
    text_features: Float[Tensor, "b e"],
    scale: Float[Tensor, ""],
    *,
    keys: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over the cosines of a batch of pairs, in float32 (Radford et al. 2021, fig. 3).

    `keys` say which picture each pair shows. Pairs of one picture are then all right answers of one another,
    with equal shares of the target, instead of being pushed apart; with distinct keys this is the plain loss.
    """
    number = torch.arange(len(image_features), device=image_features.device)
    # without this a second caption of a picture would be a negative of the first
    same = (number if keys is None else keys)[:, None] == (number if keys is None else keys)[None, :]
    targets = same.float() / same.sum(dim=1, keepdim=True)
    with torch.autocast(image_features.device.type, enabled=False):  # bf16 logits near 100 are 0.5 apart
        images, texts = (F.normalize(f.float(), dim=-1) for f in (image_features, text_features))
        logits = scale.float() * images @ texts.T
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def initialise_blocks(blocks: nn.ModuleList, *, width: int) -> None:
    """OpenAI's initialisation: layers that add to the residual stream start smaller in deeper networks."""
    into_residual = width**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        assert isinstance(block, Block)
        nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.attention.out.weight, std=into_residual)
        nn.init.normal_(block.mlp.wide.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.narrow.weight, std=into_residual)
        for layer in (block.attention.qkv, block.attention.out, block.mlp.wide, block.mlp.narrow):
            nn.init.zeros_(layer.bias)
