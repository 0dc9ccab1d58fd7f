"""Networks that generate code after code, of other libraries.

| source                                                           | result                             |
|------------------------------------------------------------------|------------------------------------|
| CLIP-GEN's `gpt_*.pt`                                            | `PrefixTransformer`                |
| CLIP-GEN's `vqgan_*.pt`                                          | its tokenizer, a `VQAutoencoder`   |
| a folder with one of each and OpenAI's `ViT-B-32.pt`             | a text-to-image bundle: CLIP-GEN   |
| minDALL-E's second stage: one file                               | `DalleTransformer`                 |
| a folder with both of its stages and its tokenizer of captions   | a text-to-image bundle: minDALL-E  |

A file's sizes are read off the shapes of its weights, and every weight is used exactly once. CLIP-GEN's
discriminator and masks are left out.
"""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.exchange.clip import import_openclip
from ldm.exchange.folder import tables
from ldm.exchange.image_tokenizers import (
    PART,
    SIZE,
    Sizes,
    codebook,
    import_tokenizer,
    is_tokenizer,
    learned_codebook,
    multipliers,
    tokenizer_spec,
)
from ldm.exchange.imported import Fit, Imported
from ldm.exchange.keymap import Rule, merge, rename, renames
from ldm.exchange.weights import Source, Weights
from ldm.generators.character_tokenizer import CharacterTokenizer

NETWORKS = "ldm.models.autoregressive"
HEAD_WIDTH = 64  # of all of these networks, as of GPT-2
PREFIX_MARK, TEXT_MARK, VQGAN_MARK = "cond_proj.weight", "tok_emb_txt.weight", "encoder.down.0.block.0.weight"
MASKS, CRITIC = ("blocks.*.mask",), ("discriminator.*",)
FILES = {"backbone": "gpt_*.pt", PART: "vqgan_*.pt"}  # of CLIP-GEN
STAGES = {"backbone": "stage2*.ckpt", PART: "stage1*.ckpt"}  # of minDALL-E
CLIP_FILE, CLIP_MODEL = "ViT-B-32.pt", "ViT-B-32-quickgelu"  # its conditions are of this CLIP
SAMPLING = {"top_k": 500, "top_p": 0.95}  # of its demo
MIN_DALLE = "ldm.generators.autoregressive.open_min_dalle"
RESNET = {"block.0": "norm_in", "block.2": "conv_in", "block.3": "norm_out", "block.6": "conv_out"}


def is_code_network(source: Path | Weights) -> bool:
    """Whether a file's weights, or a folder, are one of these."""
    if isinstance(source, Path):
        return any(all(any(source.glob(name)) for name in files.values()) for files in (FILES, STAGES))
    return bool(source.outline.keys() & {PREFIX_MARK, TEXT_MARK, VQGAN_MARK})


def import_code_network(source: Path | Weights, *, size: int | None) -> Imported:
    """The network in a file, or the system in a folder; pictures have 256 px unless `size` is given."""
    if isinstance(source, Path):
        is_min_dalle = any(source.glob(STAGES["backbone"]))
        return (_min_dalle if is_min_dalle else _clip_gen)(source, size=size or SIZE)
    part, fit = _fit(source, size=size or SIZE)
    left_out = [glob for glob in fit.drop if any(fnmatchcase(name, glob) for name in source.outline)]
    settings = {"size": size or SIZE} if part == PART else {}
    return Imported.of({part: fit}, settings=settings, left_out=left_out)


def _fit(weights: Weights, *, size: int) -> tuple[str, Fit]:
    if VQGAN_MARK in weights.outline:
        return PART, _vqgan_fit(weights, size=size)
    return "backbone", (_prefix_fit if PREFIX_MARK in weights.outline else _text_fit)(weights)


def _clip_gen(folder: Path, *, size: int) -> Imported:
    """CLIP-GEN: its two files, and the CLIP that makes its conditions."""
    fits = {}
    for part, pattern in FILES.items():
        weights = _only(folder, pattern)
        made, fits[part] = _fit(weights, size=size)
        if made != part:
            raise UserError(f"{weights.path} holds no {part} of CLIP-GEN but a network of another kind")
    path = folder / CLIP_FILE
    if not path.is_file():
        raise UserError(f"{folder} lacks {CLIP_FILE}: put OpenAI's file there, CLIP-GEN's conditions are its")
    clip = import_openclip(Source(path=path, name=str(path)), Weights(path), model=CLIP_MODEL)
    opener = {"_target_": "ldm.generators.autoregressive.open_autoregressive", **SAMPLING}
    own = Imported.of(
        fits,
        tokenizer=clip.tokenizer,
        settings={"generator": opener, "size": size},
        left_out=[*clip.left_out, *MASKS, *CRITIC],
        notes=clip.notes,
    )
    return replace(own, parts={**own.parts, **clip.parts}, files=sorted([*own.files, *clip.files]))


def _only(folder: Path, pattern: str) -> Weights:
    """The file of a name in a folder; UserError for several."""
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise UserError(f"{folder} has {len(found)} files {pattern}: keep one of them there")
    return Weights(found[0])


def _min_dalle(folder: Path, *, size: int) -> Imported:
    """minDALL-E: its two stages, and its tokenizer of captions, which is no CLIP's."""
    stages = {part: _only(folder, pattern) for part, pattern in STAGES.items()}
    if TEXT_MARK not in stages["backbone"].outline or not is_tokenizer(stages[PART]):
        raise UserError(f"{folder}: its stage1 and stage2 are no tokenizer and no network of minDALL-E")
    fit, pictures = _text_fit(stages["backbone"]), import_tokenizer(stages[PART], size=size)
    sizes = {"vocab_size": fit.spec["vocab_size"], "context_length": fit.spec["text_length"]}
    own = Imported.of(
        {"backbone": fit},
        tokenizer=CharacterTokenizer(*tables(folder / "tokenizer", "bpe-16k-"), **sizes),
        settings={"generator": {"_target_": MIN_DALLE, "top_k": 256}, "size": size},  # that of its demo
        **{"left_out": pictures.left_out, "notes": pictures.notes},
    )
    return replace(own, parts={**own.parts, **pictures.parts}, files=sorted([*own.files, *pictures.files]))


def _prefix_fit(weights: Weights) -> Fit:
    """CLIP-GEN's GPT."""
    sizes = Sizes(weights)
    num_codes, width = sizes["tok_emb.weight"]
    places = sizes["pos_emb"][1]
    spec = {
        "_target_": f"{NETWORKS}.PrefixTransformer",
        "prefix_dim": sizes[PREFIX_MARK][1],
        **_trunk(weights, num_codes, places, width, depth=sizes.count("blocks.{}.encoder.linear1.weight")),
    }
    return Fit(spec=spec, weights=weights, rules=prefix_rules(), drop=MASKS)


def prefix_rules() -> list[Rule]:
    """Names of CLIP-GEN's GPT against :class:`ldm.models.autoregressive.PrefixTransformer`."""
    layers = {"self_attn.out_proj": "attention.out", "linear1": "mlp.wide", "linear2": "mlp.narrow"}
    layers |= {"norm1": "norm1", "norm2": "norm2"}
    theirs, ours = "blocks.{}.encoder.", "trunk.layers.{}."
    return [
        *renames({"tok_emb": "codes", "cond_proj": "prefix", "norm": "trunk.norm", "head": "head"}),
        Rule(("pos_emb",), ("places.weight",), lambda t: [t[0].squeeze(0)], lambda t: [t[0][None]]),
        *renames(layers, theirs, ours),
        *(rename(f"{theirs}self_attn.in_proj_{x}", f"{ours}attention.qkv.{x}") for x in ("weight", "bias")),
    ]


def _text_fit(weights: Weights) -> Fit:
    """minDALL-E's second stage."""
    sizes = Sizes(weights)
    num_codes, width = sizes["tok_emb_img.weight"]
    places = sizes["pos_emb_img.weight"][0]
    spec = {
        "_target_": f"{NETWORKS}.DalleTransformer",
        "vocab_size": sizes[TEXT_MARK][0],
        "text_length": sizes["pos_emb_txt.weight"][0],
        **_trunk(weights, num_codes, places, width, depth=sizes.count("blocks.{}.mlp.0.weight")),
        **{"sparse": False, "axial": False, "own_pads": False},
    }
    return Fit(spec=spec, weights=weights, rules=text_rules())


def text_rules() -> list[Rule]:
    """Names of minDALL-E's Transformer1d against :class:`ldm.models.autoregressive.DalleTransformer`."""
    layers = {"ln1": "norm1", "ln2": "norm2", "attn.proj": "attention.out"}
    layers |= {"mlp.0": "mlp.wide", "mlp.2": "mlp.narrow"}
    tables = {"tok_emb_txt": "text", "tok_emb_img": "codes", "pos_emb_txt": "text_places"}
    tables |= {"pos_emb_img": "code_places.0", "head_txt": "head_text", "head_img": "head_codes"}
    own = [f"blocks.{{}}.attn.{name}.*" for name in ("query", "key", "value")]
    return [
        *renames(tables | {"ln_f": "trunk.norm"}),
        *renames(layers, "blocks.{}.", "trunk.layers.{}."),
        merge(own, "trunk.layers.{}.attention.qkv.*"),
    ]


def _trunk(weights: Weights, num_codes: int, places: int, width: int, *, depth: int) -> dict[str, Any]:
    """The options that all networks share; UserError for positions that make no square of codes."""
    grid = round(places**0.5)
    if grid**2 != places or width % HEAD_WIDTH:
        raise UserError(f"{weights.path}: {places} positions and width {width} make no network of ours")
    sizes = {"width": width, "depth": depth, "num_heads": width // HEAD_WIDTH}
    return {"num_codes": num_codes, "grid": grid, **sizes}


def _vqgan_fit(weights: Weights, *, size: int) -> Fit:
    """CLIP-GEN's VQGAN, whose layers on a side are numbered straight through."""
    sizes, levels = Sizes(weights), _levels(weights)
    widths = [sizes[f"encoder.down.{level[0]}.block.6.weight"][0] for level in levels]
    attends = [f"encoder.down.{level[-1]}.norm.weight" in weights.outline for level in levels]
    channels = sizes["encoder.conv_in.weight"][0]
    blocks = [len(level) // (2 if attending else 1) for level, attending in zip(levels, attends, strict=True)]
    trunk = {
        "channels": channels,
        "multipliers": multipliers(widths, channels),
        "blocks_per_level": blocks[0],
        "level_attention": attends,
        "norm_eps": 1e-5,  # torch's default
    }
    quantizer = learned_codebook(*sizes["quantizer.embedding.weight"][:2]) | {"codebook_weight": 0.2}
    features = sizes["encoder.final.3.weight"][0]
    spec = tokenizer_spec(trunk, features=features, size=size, quantizer=quantizer)
    return Fit(spec=spec, weights=weights, rules=list(vqgan_rules(attends, blocks[0])), drop=CRITIC)


def _levels(weights: Weights) -> list[list[int]]:
    """The numbers of the encoder's blocks and attentions, level by level: a convolution ends one."""
    levels: list[list[int]] = [[]]
    number = 0
    while any(name.startswith(f"encoder.down.{number}.") for name in weights.outline):
        if f"encoder.down.{number}.conv.weight" in weights.outline:
            levels.append([])
        else:
            levels[-1].append(number)
        number += 1
    if not all(levels):
        raise UserError(f"{weights.path} has a level without blocks: it is no VQGAN of CLIP-GEN")
    return levels


def vqgan_rules(attends: list[bool], blocks: int) -> Iterator[Rule]:
    """Names of CLIP-GEN's VQGAN against :class:`ldm.models.picture_tokenizers.VQAutoencoder`.

    Args:
        attends: whether each level has attention, the finest first.
        blocks: of a level of the encoder; the decoder's have one more.
    """
    for side, name, order, count in (
        ("encoder", "down", attends, blocks),
        ("decoder", "up", attends[::-1], blocks + 1),
    ):
        number = 0
        for level, attending in enumerate(order):
            for block in range(count):
                ours = f"{side}.levels.{level}.blocks.{block}"
                yield from _resnet(f"{side}.{name}.{number}", f"{ours}.0" if attending else ours)
                number += 1
                if attending:
                    yield from _attention(f"{side}.{name}.{number}", f"{ours}.1")
                    number += 1
            if level + 1 < len(order):
                resample = f"{side}.levels.{level}.resample.conv.*"
                yield rename(f"{side}.{name}.{number}.conv.*", resample)
                number += 1
        yield from _resnet(f"{side}.mid.0", f"{side}.middle.block_in")
        yield from _attention(f"{side}.mid.1", f"{side}.middle.attention")
        yield from _resnet(f"{side}.mid.2", f"{side}.middle.block_out")
        ends = {"conv_in": "conv_in", "final.0": "norm_out", "final.2": "conv_out"}
        yield from renames(ends, f"{side}.", f"{side}.")
    yield from renames({"encoder.final.3": "to_quantizer", "decoder.quant_conv_in": "from_codes"})
    yield codebook("quantizer.embedding.weight")


def _resnet(theirs: str, ours: str) -> list[Rule]:
    return renames(RESNET | {"shortcut": "shortcut"}, f"{theirs}.", f"{ours}.")


def _attention(theirs: str, ours: str) -> list[Rule]:
    names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
    return [
        rename(f"{theirs}.norm.*", f"{ours}.norm.*"),
        *(rename(f"{theirs}.attn.{a}", f"{ours}.attention.{b}") for a, b in names.items()),
        rename(f"{theirs}.attn.out_proj.*", f"{ours}.attention.out.*"),
    ]
