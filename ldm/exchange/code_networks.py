"""Networks that generate codes of pictures, of other libraries, and the systems that they belong to.

| source                                                            | result                               |
|-------------------------------------------------------------------|--------------------------------------|
| CLIP-GEN's `gpt_*.pt`                                             | `PrefixTransformer`                  |
| a folder with it, its `vqgan_*.pt` and OpenAI's `ViT-B-32.pt`     | a text-to-image bundle: CLIP-GEN     |
| minDALL-E's second stage: one file                                | `DalleTransformer`                   |
| a folder with both of its stages and its tokenizer of captions    | a text-to-image bundle: minDALL-E    |
| the weights of one of VQ-Diffusion's released .pth                | `CodeDenoiser`                       |
| a folder of diffusers' VQDiffusionPipeline                        | a text-to-image bundle: VQ-Diffusion |

A file's sizes are read off the shapes of its weights, and every weight is used exactly once. A file of
VQ-Diffusion knows 2,887 of its tokenizer's codes by their own numbers, which are in a file apart.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.exchange import whole_numbers
from ldm.exchange.clip import hf_text_spec, import_openclip, text_fit
from ldm.exchange.folder import find_weights, read_vocabulary, tables
from ldm.exchange.image_tokenizers import PART, tokenizer_fit, vq_fit
from ldm.exchange.imported import Config, Fit, Imported
from ldm.exchange.keymap import Rule, merge, rename, renames
from ldm.exchange.names import fused
from ldm.exchange.weights import Joined, Source, Weights
from ldm.io.fields import MAX_WIDTH, Fields
from ldm.tokenizers.listed import CharacterTokenizer

MODELS = "ldm.models.autoregressive"
HEAD_WIDTH = 64  # of all of these networks, as of GPT-2
PREFIX_MARK, TEXT_MARK = "cond_proj.weight", "tok_emb_txt.weight"
MASKS = ("blocks.*.mask",)  # which CLIP-GEN keeps beside the weights
CLIP_FILE, CLIP_MODEL = "ViT-B-32.pt", "ViT-B-32-quickgelu"  # its conditions are of this CLIP
SAMPLING = {"top_k": 500, "top_p": 0.95}  # of its demo
MIN_DALLE = "ldm.generators.autoregressive.open_min_dalle"
PIPELINE = "VQDiffusionPipeline"
EMPTY = "learned_classifier_free_sampling_embeddings"  # folder of the empty text
OURS = "ldm.models.code_denoiser.CodeDenoiser"
OPENER = "ldm.generators.text_to_codes.open_discrete_diffusion"
HEADS = 16  # of all released configs: the weights do not tell
RELEASED_MARK = "transformer.content_emb.emb.weight"
# beside the network: tables of the schedule, the history of losses, masks that are not used, and CLIP
RELEASED_BESIDE = ("log_*", "Lt_*", "*.attn2.mask", "condition_emb.*")
NUMBERS = {  # options of ours -> fields of Transformer2DModel, with their defaults
    "num_heads": ("num_attention_heads", 16),
    "depth": ("num_layers", 1),
    "num_steps": ("num_embeds_ada_norm", 100),
    "grid": ("sample_size", 32),
    "context_dim": ("cross_attention_dim", 512),
}
FIXED: Config = {"attention_bias": True, "activation_fn": "geglu-approximate", "dropout": 0.0}
SCHEDULE = {  # the only one that `released` is
    "alpha_cum_start": 0.99999,
    "alpha_cum_end": 0.000009,
    "gamma_cum_start": 0.000009,
    "gamma_cum_end": 0.99999,
}
PLACES = {"emb": "codes", "height_emb": "rows", "width_emb": "columns"}
BLOCK = {  # layers of a block of ours -> those of diffusers, and of the released code
    "norm_self.steps": ("norm1.emb", "ln1.emb"),
    "norm_self.modulation": ("norm1.linear", "ln1.linear"),
    "self_attention.out": ("attn1.to_out.0", "attn1.proj"),
    "norm_cross.steps": ("norm2.emb", "ln1_1.emb"),
    "norm_cross.modulation": ("norm2.linear", "ln1_1.linear"),
    "cross_attention.q": ("attn2.to_q", "attn2.query"),
    "cross_attention.out": ("attn2.to_out.0", "attn2.proj"),
    "norm_mlp": ("norm3", "ln2"),
    "mlp.wide": ("ff.net.0.proj", "mlp.0"),
    "mlp.narrow": ("ff.net.2", "mlp.2"),
}


def import_code_network(source: Path | Weights, *, size: int) -> Imported | None:
    """The network in a file, or the system in a folder with pictures of `size` px; None for other kinds."""
    if isinstance(source, Path):
        for files, system in SYSTEMS:
            if all(any(source.glob(name)) for name in files.values()):
                return system(source, {part: _only(source, name) for part, name in files.items()}, size)
        return None
    for mark, network in NETWORKS.items():
        if mark in source.outline:
            fit = network(source)
            return Imported.of({"backbone": fit}, left_out=fit.left_out)
    return import_released(source) if any(name.endswith(RELEASED_MARK) for name in source.outline) else None


def _clip_gen(folder: Path, files: Mapping[str, Weights], size: int) -> Imported:
    """CLIP-GEN: its two files, and the CLIP that makes its conditions."""
    network, path = files["backbone"], folder / CLIP_FILE
    fits = {
        "backbone": _prefix_fit(network) if PREFIX_MARK in network.outline else None,
        PART: tokenizer_fit(files[PART], size=size),
    }
    for part, fit in fits.items():
        if fit is None:
            where = files[part].path
            raise UserError(f"{where} holds no {part} of CLIP-GEN but a network of another kind")
    if not path.is_file():
        raise UserError(f"{folder} lacks {CLIP_FILE}: put OpenAI's file there, CLIP-GEN's conditions are its")
    clip = import_openclip(Source(path=path, name=str(path)), Weights(path), model=CLIP_MODEL)
    opener = {"_target_": "ldm.generators.autoregressive.open_autoregressive", **SAMPLING}
    own = Imported.of(
        fits,
        tokenizer=clip.tokenizer,
        settings={"generator": opener, "size": size},
        left_out=[*clip.left_out, *MASKS, *fits[PART].drop],
        notes=clip.notes,
    )
    return replace(own, parts={**own.parts, **clip.parts}, files=sorted([*own.files, *clip.files]))


def _only(folder: Path, pattern: str) -> Weights:
    """The file of a name in a folder; UserError for several."""
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise UserError(f"{folder} has {len(found)} files {pattern}: keep one of them there")
    return Weights(found[0])


def _min_dalle(folder: Path, files: Mapping[str, Weights], size: int) -> Imported:
    """minDALL-E: its two stages, and its tokenizer of captions, which is no CLIP's."""
    stage, pictures = files["backbone"], tokenizer_fit(files[PART], size=size)
    if TEXT_MARK not in stage.outline or pictures is None:
        raise UserError(f"{folder}: its stage1 and stage2 are no tokenizer and no network of minDALL-E")
    fit = _text_fit(stage)
    sizes = {"vocab_size": fit.spec["vocab_size"], "context_length": fit.spec["text_length"]}
    return Imported.of(
        {"backbone": fit, PART: pictures},
        tokenizer=CharacterTokenizer(*tables(folder / "tokenizer", "bpe-16k-"), **sizes),
        settings={"generator": {"_target_": MIN_DALLE, "top_k": 256}, "size": size},  # that of its demo
        left_out=pictures.left_out,
    )


def _prefix_fit(weights: Weights) -> Fit:
    """CLIP-GEN's GPT."""
    depth = weights.count("blocks.{}.encoder.linear1.weight")
    spec = {
        "_target_": f"{MODELS}.PrefixTransformer",
        "prefix_dim": weights.sizes(PREFIX_MARK)[1],
        **_trunk(weights, "tok_emb.weight", places=weights.sizes("pos_emb")[1], depth=depth),
    }
    return Fit(spec=spec, weights=weights, rules=prefix_rules(), drop=MASKS)


def prefix_rules() -> list[Rule]:
    """Names of CLIP-GEN's GPT against :class:`ldm.models.autoregressive.PrefixTransformer`."""
    layers = {"norm1": "norm1", "norm2": "norm2", "linear1": "mlp.wide", "linear2": "mlp.narrow"}
    theirs, ours = "blocks.{}.encoder.", "trunk.layers.{}."
    return [
        *renames({"tok_emb": "codes", "cond_proj": "prefix", "norm": "trunk.norm", "head": "head"}),
        Rule(("pos_emb",), ("places.weight",), lambda t: [t[0].squeeze(0)], lambda t: [t[0][None]]),
        *renames(layers, theirs, ours),
        *fused(f"{theirs}self_attn.", f"{ours}attention."),
    ]


def _text_fit(weights: Weights) -> Fit:
    """minDALL-E's second stage."""
    places, depth = weights.sizes("pos_emb_img.weight")[0], weights.count("blocks.{}.mlp.0.weight")
    spec = {
        "_target_": f"{MODELS}.DalleTransformer",
        "vocab_size": weights.sizes(TEXT_MARK)[0],
        "text_length": weights.sizes("pos_emb_txt.weight")[0],
        **_trunk(weights, "tok_emb_img.weight", places=places, depth=depth),
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


def _trunk(weights: Weights, codes: str, *, places: int, depth: int) -> dict[str, Any]:
    """The options that all networks share, with a table of codes; UserError for positions of no square."""
    (num_codes, width), grid = weights.sizes(codes), round(places**0.5)
    if grid**2 != places or width % HEAD_WIDTH:
        raise UserError(f"{weights.path}: {places} positions and width {width} make no network of ours")
    sizes = {"width": width, "depth": depth, "num_heads": width // HEAD_WIDTH}
    return {"num_codes": num_codes, "grid": grid, **sizes}


def diffusers_rules() -> list[Rule]:
    """Names of Transformer2DModel over codes against ours; the empty text comes as `empty.embeddings`."""
    return [
        *renames(PLACES, "latent_image_embedding."),
        *renames({"norm_out": "norm_out", "out": "logits"}),
        rename("empty.embeddings", "empty"),
        *_block("transformer_blocks.{}.", 0, own=[f"to_{x}" for x in "qkv"], text=[f"to_{x}" for x in "kv"]),
    ]


def released_rules() -> list[Rule]:
    """Names of the released code against ours, without the prefix `transformer.`; see `RELEASED_BESIDE`."""
    return [
        *renames(PLACES, "transformer.content_emb."),
        *renames({"to_logits.0": "norm_out", "to_logits.1": "logits"}, "transformer."),
        rename("empty_text_embed", "empty"),
        *_block("transformer.blocks.{}.", 1, own=["query", "key", "value"], text=["key", "value"]),
    ]


def _block(theirs: str, column: int, *, own: list[str], text: list[str]) -> list[Rule]:
    """A block: layers under the names in a column of BLOCK, and projections of attention as one."""
    ours = "blocks.{}."
    return [
        *renames({names[column]: name for name, names in BLOCK.items()}, theirs, ours),
        merge([f"{theirs}attn1.{name}.*" for name in own], f"{ours}self_attention.qkv.*"),
        merge([f"{theirs}attn2.{name}.*" for name in text], f"{ours}cross_attention.kv.*"),
    ]


def import_vq_diffusion(folder: Path, *, text_state: str | None) -> Imported:
    """A whole pipeline. Its guidance scale is that of the pipeline's own call, 5."""
    names = ("transformer", "vqvae", "text_encoder", EMPTY)
    configs = {name: Fields.read(folder / name / "config.json") for name in names}
    scheduler = Fields.read(folder / "scheduler" / "scheduler_config.json")
    if not configs[EMPTY].flag("learnable"):
        raise UserError(f"{folder / EMPTY}: there is no learned empty text, which our network has")
    text = text_fit(
        hf_text_spec(configs["text_encoder"]), find_weights(folder / "text_encoder"), state=text_state
    )
    spec = transformer_spec(configs["transformer"], context_length=text.spec["context_length"])
    process = _process(scheduler, spec)
    own = find_weights(folder / "transformer")
    weights = Joined(own.path, parts={"": own, "empty.": find_weights(folder / EMPTY)})
    factor = 2 ** (len(configs["vqvae"].entries("block_out_channels")) - 1)
    fits = {
        "backbone": Fit(spec=spec, weights=weights, rules=diffusers_rules()),
        PART: vq_fit(find_weights(folder / "vqvae"), configs["vqvae"], size=factor * spec["grid"]),
        "text_encoder": text,
    }
    if (there := fits[PART].spec["quantizer"]["num_codes"]) != spec["num_codes"]:
        raise UserError(f"{folder}: its vqvae has {there} codes, but its transformer {spec['num_codes']}")
    sizes = {name: text.spec[name] for name in ("context_length", "vocab_size")}
    return Imported.of(
        fits,
        tokenizer=read_vocabulary(folder / "tokenizer", **sizes),
        settings={
            "size": factor * spec["grid"],
            "process": process,
            "generator": {"_target_": OPENER, "steps": spec["num_steps"], "scale": 5.0},
        },
    )


def transformer_spec(fields: Fields, *, context_length: int) -> Config:
    """The tree of our network for a config of Transformer2DModel over codes."""
    fields.only(FIXED)
    fields.choice("norm_type", {"ada_norm": True, "layer_norm": True}, "layer_norm")  # its earlier name
    numbers = whole_numbers(fields, NUMBERS)
    width = numbers["num_heads"] * fields.whole("attention_head_dim", 88, high=MAX_WIDTH)
    num_codes = fields.whole("num_vector_embeds", high=MAX_WIDTH) - 1  # theirs counts the mask
    sizes = {"num_codes": num_codes, "context_length": context_length, "width": width}
    return {"_target_": OURS, **sizes, **numbers}


def import_released(weights: Weights) -> Imported:
    """The network of a released file: of its EMA, or of its whole model."""
    prefix = "transformer." * (f"transformer.{RELEASED_MARK}" in weights.outline)
    inner, sizes = f"{prefix}transformer.", weights.sizes
    rows, width = sizes(f"{inner}content_emb.emb.weight")
    length, context_dim = sizes(f"{prefix}empty_text_embed")
    spec = {
        "_target_": OURS,
        **{"num_codes": rows - 1, "grid": sizes(f"{inner}content_emb.height_emb.weight")[0]},
        "num_steps": sizes(f"{inner}blocks.0.ln1.emb.weight")[0],
        **{"context_dim": context_dim, "context_length": length, "width": width},
        **{"depth": weights.count(f"{inner}blocks.{{}}.ln2.weight"), "num_heads": HEADS},
    }
    fit = Fit(spec=spec, weights=weights, rules=released_rules(), prefix=prefix, drop=RELEASED_BESIDE)
    return Imported.of(
        {"backbone": fit},
        settings={"process": _released(spec), "generator": {"_target_": OPENER}},
        left_out=["its CLIP and its VQGAN, if it has them"],
        notes=[f"the file doesn't tell the number of heads: {HEADS} was taken, as in all released configs"],
    )


def _process(scheduler: Fields, spec: Config) -> Config:
    """Our process for a VQDiffusionScheduler, which must be that of the released weights."""
    scheduler.only(SCHEDULE)
    counts = {"num_vec_classes": spec["num_codes"] + 1, "num_train_timesteps": spec["num_steps"]}
    for field, wanted in counts.items():
        if (found := scheduler.whole(field, wanted, high=MAX_WIDTH)) != wanted:
            raise UserError(f"{scheduler.name}: {field}={found}, but the transformer's weights want {wanted}")
    return _released(spec)


def _released(spec: Config) -> Config:
    own = {name: spec[name] for name in ("num_codes", "num_steps")}
    return {"_target_": "ldm.diffusion.discrete.released", **own}


NETWORKS = {PREFIX_MARK: _prefix_fit, TEXT_MARK: _text_fit}  # by a tensor's name
SYSTEMS = (  # the files of a folder by part, and what reads them
    ({"backbone": "gpt_*.pt", PART: "vqgan_*.pt"}, _clip_gen),
    ({"backbone": "stage2*.ckpt", PART: "stage1*.ckpt"}, _min_dalle),
)
