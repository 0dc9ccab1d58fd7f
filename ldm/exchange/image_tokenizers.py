"""Tokenizers of pictures of other libraries.

| source                                                       | network                            |
|--------------------------------------------------------------|------------------------------------|
| taming-transformers' VQGAN, plain or Gumbel: one file        | `VQAutoencoder`                    |
| a folder of diffusers' VQModel                               | `VQAutoencoder`                    |
| OpenAI's discrete VAE: a folder with encoder and decoder.pkl | `DiscreteVAE`                      |
| rosinality's VQ-VAE-2: one file                              | `TwoLevelTokenizer`                |

A file's sizes are read off the shapes of its weights, and every weight is used exactly once. What these
trainings keep beside the network, such as VQGAN's discriminator, is left out.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ldm import UserError
from ldm.exchange import whole_numbers
from ldm.exchange.diffusers import QUANT, VAE_DOWN, VAE_FIXED, VAE_NUMBERS, VAE_UP, levels_of
from ldm.exchange.imported import Config, Fit, Imported
from ldm.exchange.keymap import Rule, rename, renames, transpose
from ldm.exchange.names import compvis_vae_rules, vae_rules
from ldm.exchange.weights import Weights
from ldm.io.fields import MAX_WIDTH, Fields

PART = "image_tokenizer"
PICKLES = ("encoder", "decoder")  # of OpenAI's release: <name>.pkl
SIZE = 256  # pixels of a side that all of these were trained with
VQGAN_MARK, VQVAE2_MARK = "quantize.", "quantize_t."
VQGAN_BESIDE = ("loss.*", "colorize")  # the discriminator, its features, and a projection for segmentations
OUTER = ("to_quantizer", "from_codes")
COSINE = {"_target_": "ldm.models.quantizers.cosine", "_partial_": True, "steps": 1}


def is_tokenizer(source: Path | Weights) -> bool:
    """Whether a folder, or a file with its weights, holds one of these tokenizers."""
    if isinstance(source, Path):
        return all((source / f"{name}.pkl").is_file() for name in PICKLES)
    return any(name.startswith((VQGAN_MARK, VQVAE2_MARK)) for name in source.outline)


def import_tokenizer(source: Path | Weights, *, size: int | None) -> Imported:
    """The tokenizer of such a folder or file, for pictures of `size` px; None: as it was trained."""
    size = size or SIZE
    if isinstance(source, Path):
        return _imported(_dvae_fit(source, size=size))
    is_two_level = any(name.startswith(VQVAE2_MARK) for name in source.outline)
    return _imported((_two_level_fit if is_two_level else _vqgan_fit)(source, size=size))


def import_vq_model(weights: Weights, config: Fields, size: int | None) -> Imported:
    """The network of a diffusers folder."""
    return _imported(vq_fit(weights, config, size=size or SIZE))


def vq_fit(weights: Weights, config: Fields, *, size: int) -> Fit:
    """diffusers' VQModel and its config against ours."""
    spec = vq_spec(config, size=size)
    attention = spec["trunk"]["level_attention"]
    rules = [*vae_rules(weights.outline, outer=OUTER, attention=attention), codebook()]
    return Fit(spec=spec, weights=weights, rules=rules)


def _imported(fit: Fit) -> Imported:
    left_out = [glob for glob in fit.drop if any(fnmatchcase(name, glob) for name in fit.weights.outline)]
    return Imported.of({PART: fit}, settings={"size": fit.spec["size"]}, left_out=left_out)


def vq_spec(fields: Fields, *, size: int) -> Config:
    """The tree of our tokenizer for a config of diffusers' VQModel, and pictures of `size` px."""
    kinds = {VAE_DOWN: False, f"Attn{VAE_DOWN}": True}
    attention, widths = levels_of(fields, kinds, width=64)
    numbers = whole_numbers(fields, VAE_NUMBERS)
    features = numbers.pop("latent_channels")
    middle = fields.flag("mid_block_add_attention", True)
    fields.only(
        {key: value for key, value in VAE_FIXED.items() if key not in QUANT}
        | {"norm_type": "group"}
        | {"up_block_types": ["Attn" * attends + VAE_UP for attends in attention[::-1]]}
    )
    own = {"down_block_types", "up_block_types", "block_out_channels", "num_vq_embeddings", "vq_embed_dim"}
    beside = {"sample_size", "scaling_factor", "force_upcast", "lookup_from_codebook", "norm_type"}
    written = {field for field, _ in VAE_NUMBERS.values()} | {"mid_block_add_attention"}
    fields.known(VAE_FIXED.keys() - QUANT.keys() | own | beside | written)
    trunk = widths | numbers | {"mid_attention": middle, "level_attention": attention}
    return tokenizer_spec(
        trunk,
        features=features,
        size=size,
        quantizer=learned_codebook(
            fields.whole("num_vq_embeddings", 256, high=MAX_WIDTH),
            fields.whole("vq_embed_dim", features, high=MAX_WIDTH),
        ),
    )


def tokenizer_spec(trunk: Config, *, features: int, size: int, quantizer: Config) -> Config:
    """The tree of :class:`ldm.models.picture_tokenizers.VQAutoencoder`."""
    return {
        "_target_": "ldm.models.picture_tokenizers.VQAutoencoder",
        "size": size,
        "features": features,
        "trunk": {"_target_": "ldm.models.picture_tokenizers.Trunk", **trunk},
        "quantizer": quantizer,
    }


def multipliers(widths: Sequence[int], channels: int) -> list[int | float]:
    """The widths of levels in units of the first channels, whole numbers where they are."""
    return [width // channels if width % channels == 0 else width / channels for width in widths]


def learned_codebook(num_codes: int, dim: int) -> Config:
    """The tree of a codebook that was trained by its gradient, with the weights of taming-transformers."""
    sizes = {"num_codes": num_codes, "dim": dim, "learned": True}
    weights = {"encoder_weight": 1.0, "codebook_weight": 0.25}
    return {"_target_": "ldm.models.quantizers.VectorQuantizer", **sizes, **weights}


def _vqgan_fit(weights: Weights, *, size: int) -> Fit:
    """taming-transformers' VQModel or GumbelVQ; its group norms have 32 groups."""
    sizes = Sizes(weights)
    is_gumbel = "quantize.proj.weight" in weights.outline
    levels = sizes.count("encoder.down.{}.block.0.conv1.weight")
    widths = [sizes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)]
    attention = [f"encoder.down.{level}.attn.0.norm.weight" in weights.outline for level in range(levels)]
    channels = sizes["encoder.conv_in.weight"][0]
    trunk = {
        "channels": channels,
        "multipliers": multipliers(widths, channels),
        "blocks_per_level": sizes.count("encoder.down.0.block.{}.conv1.weight"),
        "mid_attention": "encoder.mid.attn_1.norm.weight" in weights.outline,
        "level_attention": attention,
    }
    if is_gumbel:
        num_codes, inputs, *_ = sizes["quantize.proj.weight"]
        quantizer = gumbel(num_codes, channels=inputs, dim=sizes["quantize.embed.weight"][1])
    else:
        quantizer = learned_codebook(*sizes["quantize.embedding.weight"][:2])
    features = sizes["encoder.conv_out.weight"][0]
    spec = tokenizer_spec(trunk, features=features, size=size, quantizer=quantizer)
    rules = vqgan_rules(attention, is_gumbel=is_gumbel)
    return Fit(spec=spec, weights=weights, rules=rules, drop=VQGAN_BESIDE)


def vqgan_rules(attention: Sequence[bool], *, is_gumbel: bool) -> list[Rule]:
    """Names of taming's VQModel or GumbelVQ against :class:`ldm.models.picture_tokenizers.VQAutoencoder`.

    `attention` says whether each level has it, the finest first.
    """
    rules = compvis_vae_rules(num_levels=len(attention), outer=OUTER, attention=attention)
    if not is_gumbel:
        return [*rules, codebook()]
    own = renames({"quantize.proj": "quantizer.to_logits"})
    return [*rules, *own, rename("quantize.embed.weight", "quantizer.codebook")]


def codebook(theirs: str = "quantize.embedding.weight") -> Rule:
    """A learned codebook; counts of use begin equal, so that training on does not restart its codes."""
    return Rule(
        (theirs,),
        ("quantizer.codebook", "quantizer.counts"),
        read=lambda t: [t[0], t[0].new_ones(len(t[0]))],
        write=lambda t: t[:1],
    )


def gumbel(num_codes: int, *, channels: int, dim: int) -> Config:
    """The tree of a Gumbel quantizer that has been trained: its temperature has fallen."""
    return {
        "_target_": "ldm.models.quantizers.GumbelQuantizer",
        **{"channels": channels, "num_codes": num_codes, "dim": dim},
        "temperature": {**COSINE, "start": 0.0625, "end": 0.0625},
        "divergence_weight": {**COSINE, "start": 5e-4, "end": 5e-4},
    }


def _two_level_fit(weights: Weights, *, size: int) -> Fit:
    """rosinality's VQVAE."""
    sizes = Sizes(weights)
    dim, channels = sizes["quantize_conv_t.weight"][:2]
    blocks = sizes.count("enc_t.blocks.{}.conv.1.weight", first=3)
    quantizer = {"_target_": "ldm.models.quantizers.VectorQuantizer", "dim": dim}
    spec = {
        "_target_": "ldm.models.strided_tokenizers.TwoLevelTokenizer",
        **{"size": size, "channels": channels, "residual_blocks": blocks},
        "residual_channels": sizes["enc_t.blocks.3.conv.1.weight"][0] if blocks else 1,
        **{
            name: {**quantizer, "num_codes": sizes[f"quantize_{name[0]}.embed"][1]}
            for name in ("top", "bottom")
        },
    }
    return Fit(spec=spec, weights=weights, rules=list(two_level_rules(blocks)))


def two_level_rules(blocks: int) -> Iterator[Rule]:
    """Names of rosinality's VQVAE against :class:`ldm.models.strided_tokenizers.TwoLevelTokenizer`."""
    for theirs, ours, halvings in (("enc_b", "encoder_bottom", 2), ("enc_t", "encoder_top", 1)):
        layers = {2 * number: f"halvings.{number}" for number in range(halvings)} | {2 * halvings: "conv"}
        yield from _strided(theirs, ours, layers, first=2 * halvings + 1, blocks=blocks)
    for theirs, ours, doublings in (("dec", "decoder", 1), ("dec_t", "decoder_top", 0)):
        after = blocks + 2  # the first convolution, the blocks, and a ReLU
        layers = {0: "conv"} | {after + 2 * number: f"doublings.{number}" for number in range(doublings)}
        yield from _strided(
            theirs, ours, layers | {after + 2 * doublings: "conv_out"}, first=1, blocks=blocks
        )
    outer = {"quantize_conv_t": "to_top", "quantize_conv_b": "to_bottom", "upsample_t": "upsample_top"}
    yield from renames(outer)
    for name in ("top", "bottom"):
        theirs = f"quantize_{name[0]}"
        yield transpose(f"{theirs}.embed", f"{name}.codebook")
        yield transpose(f"{theirs}.embed_avg", f"{name}.sums")
        yield rename(f"{theirs}.cluster_size", f"{name}.counts")


def _strided(theirs: str, ours: str, layers: Mapping[int, str], *, first: int, blocks: int) -> Iterator[Rule]:
    """Numbered layers of theirs, and residual blocks from number `first` on."""
    yield from renames(
        {f"{number}": name for number, name in layers.items()}, f"{theirs}.blocks.", f"{ours}."
    )
    for block in range(blocks):
        inner = {"1": "conv_in", "3": "conv_out"}
        yield from renames(inner, f"{theirs}.blocks.{first + block}.conv.", f"{ours}.blocks.{block}.")


def _dvae_fit(folder: Path, *, size: int) -> Fit:
    """OpenAI's pickles."""
    weights = Joined(folder / "encoder.pkl", parts={f"{x}.": Weights(folder / f"{x}.pkl") for x in PICKLES})
    sizes = Sizes(weights)
    groups = sizes.count("encoder.blocks.group_{}.block_1.res_path.conv_1.w", first=1)
    blocks = sizes.count("encoder.blocks.group_1.block_{}.res_path.conv_1.w", first=1)
    channels = sizes["encoder.blocks.input.w"][0]
    widths = [sizes[f"encoder.blocks.group_{n + 1}.block_1.res_path.conv_4.w"][0] for n in range(groups)]
    num_codes, last, *_ = sizes["encoder.blocks.output.conv.w"]
    spec = {
        "_target_": "ldm.models.discrete_vae.DiscreteVAE",
        **{"size": size, "channels": channels, "multipliers": [width // channels for width in widths]},
        "blocks_per_group": blocks,
        "quantizer": gumbel(num_codes, channels=last, dim=sizes["decoder.blocks.input.w"][0]),
    }
    return Fit(spec=spec, weights=weights, rules=list(dvae_rules(groups, blocks)))


def dvae_rules(groups: int, blocks: int) -> Iterator[Rule]:
    """Names of OpenAI's Encoder and Decoder against :class:`ldm.models.discrete_vae.DiscreteVAE`."""
    layers = {"encoder.blocks.input": "encoder.conv_in", "encoder.blocks.output.conv": "quantizer.to_logits"}
    layers |= {"decoder.blocks.output.conv": "decoder.conv_out"}
    for side in PICKLES:
        for group in range(groups):
            for block in range(blocks):
                theirs = f"{side}.blocks.group_{group + 1}.block_{block + 1}"
                ours = f"{side}.groups.{group * (blocks + 1) + block}"  # a change of resolution is one, too
                layers |= {f"{theirs}.res_path.conv_{n + 1}": f"{ours}.convolutions.{n}" for n in range(4)}
                layers |= {f"{theirs}.id_path": f"{ours}.shortcut"}
    for theirs, ours in layers.items():
        yield rename(f"{theirs}.w", f"{ours}.weight")
        yield rename(f"{theirs}.b", f"{ours}.bias")
    yield Rule(  # a convolution of one-hot codes: the row of a code, and the bias that all codes share
        ("decoder.blocks.input.w", "decoder.blocks.input.b"),
        ("quantizer.codebook",),
        read=lambda t: [t[0].flatten(1).T + t[1]],
        write=lambda t: [t[0].T[:, :, None, None], t[0].new_zeros(t[0].shape[1])],
    )


@dataclass(frozen=True)
class Joined(Weights):
    """The tensors of several files, each file's under a prefix."""

    parts: Mapping[str, Weights] = field(default_factory=dict, hash=False)

    @property
    def files(self) -> list[Path]:
        """All files."""
        return [file for part in self.parts.values() for file in part.files]

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """All tensors, on the meta device."""
        return {prefix + name: x for prefix, part in self.parts.items() for name, x in part.outline.items()}

    @property
    def notes(self) -> list[str]:
        """The notes on all files."""
        return [note for part in self.parts.values() for note in part.notes]

    def load(self, only: Collection[str] | None = None) -> dict[str, Tensor]:
        """The tensors, or those among the names in `only`."""
        loaded = {prefix + name: x for prefix, part in self.parts.items() for name, x in part.load().items()}
        return {name: x for name, x in loaded.items() if only is None or name in only}


class Sizes:
    """The shapes of a file's tensors, which give the sizes of a network.

    Raises UserError for a tensor that is not there.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def __getitem__(self, name: str) -> Sequence[int]:
        """The shape of a tensor of at least two dimensions."""
        shape = self.weights.outline[name].shape if name in self.weights.outline else ()
        if len(shape) < 2:
            raise UserError(f"{self.weights.path} lacks the matrix {name}, which tells its network's sizes")
        return list(shape)

    def count(self, name: str, *, first: int = 0) -> int:
        """How many names there are with consecutive numbers from `first` on in place of `{}`."""
        number = first
        while name.format(number) in self.weights.outline:
            number += 1
        return number - first
