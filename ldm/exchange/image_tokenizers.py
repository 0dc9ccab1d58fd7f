"""Tokenizers of pictures of other libraries.

| source                                                       | network                            |
|--------------------------------------------------------------|------------------------------------|
| taming-transformers' VQGAN, plain or Gumbel: one file        | `VQAutoencoder`                    |
| a folder of diffusers' VQModel                               | `VQAutoencoder`                    |
| OpenAI's discrete VAE: a folder with encoder and decoder.pkl | `DiscreteVAE`                      |
| rosinality's VQ-VAE-2: one file                              | `TwoLevelTokenizer`                |
| CLIP-GEN's `vqgan_*.pt`                                      | `VQAutoencoder`                    |

A file's sizes are read off the shapes of its weights, and every weight is used exactly once. What these
trainings keep beside the network, such as VQGAN's discriminator, is left out.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ldm import UserError
from ldm.exchange import whole_numbers
from ldm.exchange.diffusers import QUANT, VAE_DOWN, VAE_FIXED, VAE_NUMBERS, VAE_UP, levels_of
from ldm.exchange.imported import Config, Fit, Imported
from ldm.exchange.keymap import Rule, rename, renames, transpose
from ldm.exchange.names import compvis_vae_rules, fused, vae_rules
from ldm.exchange.weights import Joined, Weights
from ldm.io.fields import MAX_WIDTH, Fields

PART = "image_tokenizer"
PICKLES = ("encoder", "decoder")  # of OpenAI's release: <name>.pkl
SIZE = 256  # pixels of a side that all of these were trained with
VQGAN_BESIDE = ("loss.*", "colorize")  # the discriminator, its features, and a projection for segmentations
OUTER = ("to_quantizer", "from_codes")
CLIP_GEN_RESNET = {"block.0": "norm_in", "block.2": "conv_in", "block.3": "norm_out", "block.6": "conv_out"}
CLIP_GEN_RESNET |= {"shortcut": "shortcut"}
CLIP_GEN_ENDS = {"conv_in": "conv_in", "final.0": "norm_out", "final.2": "conv_out"}
COSINE = {"_target_": "ldm.models.quantizers.cosine", "_partial_": True, "steps": 1}


def tokenizer_fit(source: Path | Weights, *, size: int) -> Fit | None:
    """The tokenizer in a folder or file, for pictures of `size` px; None where it holds another kind."""
    if isinstance(source, Path):
        is_dvae = all((source / f"{name}.pkl").is_file() for name in PICKLES)
        return _dvae_fit(source, size=size) if is_dvae else None
    for mark, fit in FILES.items():
        if source.has(mark):
            return fit(source, size=size)
    return None


def import_tokenizer(fit: Fit) -> Imported:
    """The tokenizer as the contents of a bundle."""
    return Imported.of({PART: fit}, settings={"size": fit.spec["size"]}, left_out=fit.left_out)


def vq_fit(weights: Weights, config: Fields, *, size: int) -> Fit:
    """diffusers' VQModel and its config against ours."""
    spec = vq_spec(config, size=size)
    attention = spec["trunk"]["level_attention"]
    rules = [*vae_rules(weights.outline, outer=OUTER, attention=attention), codebook()]
    return Fit(spec=spec, weights=weights, rules=rules)


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
    is_gumbel = "quantize.proj.weight" in weights.outline
    levels = range(weights.count("encoder.down.{}.block.0.conv1.weight"))
    widths = [weights.sizes(f"encoder.down.{level}.block.0.conv2.weight")[0] for level in levels]
    attention = [f"encoder.down.{level}.attn.0.norm.weight" in weights.outline for level in levels]
    channels = weights.sizes("encoder.conv_in.weight")[0]
    trunk = {
        "channels": channels,
        "multipliers": multipliers(widths, channels),
        "blocks_per_level": weights.count("encoder.down.0.block.{}.conv1.weight"),
        "mid_attention": "encoder.mid.attn_1.norm.weight" in weights.outline,
        "level_attention": attention,
    }
    if is_gumbel:
        num_codes, inputs, *_ = weights.sizes("quantize.proj.weight")
        quantizer = gumbel(num_codes, channels=inputs, dim=weights.sizes("quantize.embed.weight")[1])
    else:
        quantizer = learned_codebook(*weights.sizes("quantize.embedding.weight")[:2])
    features = weights.sizes("encoder.conv_out.weight")[0]
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
    dim, channels = weights.sizes("quantize_conv_t.weight")[:2]
    blocks = weights.count("enc_t.blocks.{}.conv.1.weight", first=3)
    quantizer = {"_target_": "ldm.models.quantizers.VectorQuantizer", "dim": dim}
    spec: Config = {
        "_target_": "ldm.models.convolutional_tokenizers.TwoLevelTokenizer",
        **{"size": size, "channels": channels, "residual_blocks": blocks},
        "residual_channels": weights.sizes("enc_t.blocks.3.conv.1.weight")[0] if blocks else 1,
    }
    for name in ("top", "bottom"):
        spec[name] = {**quantizer, "num_codes": weights.sizes(f"quantize_{name[0]}.embed")[1]}
    return Fit(spec=spec, weights=weights, rules=list(two_level_rules(blocks)))


def two_level_rules(blocks: int) -> Iterator[Rule]:
    """Names of rosinality's VQVAE against :class:`ldm.models.convolutional_tokenizers.TwoLevelTokenizer`."""
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
    block = "encoder.blocks.group_{}.block_{}.res_path.conv_{}.w"
    groups = weights.count(block.format("{}", 1, 1), first=1)
    blocks = weights.count(block.format(1, "{}", 1), first=1)
    channels = weights.sizes("encoder.blocks.input.w")[0]
    widths = [weights.sizes(block.format(n + 1, 1, 4))[0] for n in range(groups)]
    num_codes, last, *_ = weights.sizes("encoder.blocks.output.conv.w")
    spec = {
        "_target_": "ldm.models.convolutional_tokenizers.DiscreteVAE",
        **{"size": size, "channels": channels, "multipliers": [width // channels for width in widths]},
        "blocks_per_group": blocks,
        "quantizer": gumbel(num_codes, channels=last, dim=weights.sizes("decoder.blocks.input.w")[0]),
    }
    return Fit(spec=spec, weights=weights, rules=list(dvae_rules(groups, blocks)))


def dvae_rules(groups: int, blocks: int) -> Iterator[Rule]:
    """Names of OpenAI's networks against :class:`ldm.models.convolutional_tokenizers.DiscreteVAE`."""
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


def _clip_gen_fit(weights: Weights, *, size: int) -> Fit:
    """CLIP-GEN's VQGAN, whose layers on a side are numbered straight through."""
    levels: list[list[int]] = [[]]
    numbers = {int(name.split(".")[2]) for name in weights.outline if name.startswith("encoder.down.")}
    for number in sorted(numbers):  # a convolution ends a level of blocks and attentions
        if f"encoder.down.{number}.conv.weight" in weights.outline:
            levels.append([])
        else:
            levels[-1].append(number)
    if not all(levels):
        raise UserError(f"{weights.path} has a level without blocks: it is no VQGAN of CLIP-GEN")
    widths = [weights.sizes(f"encoder.down.{level[0]}.block.6.weight")[0] for level in levels]
    attends = [f"encoder.down.{level[-1]}.norm.weight" in weights.outline for level in levels]
    channels, blocks = weights.sizes("encoder.conv_in.weight")[0], len(levels[0]) // (1 + attends[0])
    trunk = {
        "channels": channels,
        "multipliers": multipliers(widths, channels),
        "blocks_per_level": blocks,
        "level_attention": attends,
        "norm_eps": 1e-5,  # torch's default
    }
    quantizer = learned_codebook(*weights.sizes("quantizer.embedding.weight")[:2]) | {"codebook_weight": 0.2}
    features = weights.sizes("encoder.final.3.weight")[0]
    spec = tokenizer_spec(trunk, features=features, size=size, quantizer=quantizer)
    rules = list(clip_gen_rules(attends, blocks))
    return Fit(spec=spec, weights=weights, rules=rules, drop=("discriminator.*",))


def clip_gen_rules(attends: list[bool], blocks: int) -> Iterator[Rule]:
    """Names of CLIP-GEN's VQGAN against :class:`ldm.models.picture_tokenizers.VQAutoencoder`.

    `attends` is as of `vqgan_rules`; a level of the encoder has `blocks`, one of the decoder has one more.
    """
    for side, way, order in (("encoder", "down", attends), ("decoder", "up", attends[::-1])):
        theirs, middle = map(f"{side}.{way}.{{}}.".format, itertools.count()), f"{side}.middle."
        for level, attending in enumerate(order):
            ours = f"{side}.levels.{level}."
            for block in range(blocks + (side == "decoder")):
                yield from renames(CLIP_GEN_RESNET, next(theirs), f"{ours}blocks.{block}." + "0." * attending)
                yield from _clip_gen_attention(next(theirs), f"{ours}blocks.{block}.1.") if attending else ()
            if level + 1 < len(order):
                yield rename(f"{next(theirs)}conv.*", f"{ours}resample.conv.*")
        yield from renames(CLIP_GEN_RESNET, f"{side}.mid.0.", f"{middle}block_in.")
        yield from _clip_gen_attention(f"{side}.mid.1.", f"{middle}attention.")
        yield from renames(CLIP_GEN_RESNET, f"{side}.mid.2.", f"{middle}block_out.")
        yield from renames(CLIP_GEN_ENDS, f"{side}.", f"{side}.")
    yield from renames({"encoder.final.3": "to_quantizer", "decoder.quant_conv_in": "from_codes"})
    yield codebook("quantizer.embedding.weight")


def _clip_gen_attention(theirs: str, ours: str) -> list[Rule]:
    return [rename(f"{theirs}norm.*", f"{ours}norm.*"), *fused(f"{theirs}attn.", f"{ours}attention.")]


FILES = {  # by the beginning of a tensor's name
    "quantize_t.": _two_level_fit,
    "quantize.": _vqgan_fit,
    "encoder.down.0.block.0.weight": _clip_gen_fit,
}
