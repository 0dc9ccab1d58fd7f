"""VQ-Diffusion in diffusers' folders, and its network in the released files.

| source                                       | result                             |
|----------------------------------------------|------------------------------------|
| a folder of diffusers' VQDiffusionPipeline   | a text-to-image bundle             |
| the weights of one of the released .pth      | a bundle of the denoiser of codes  |

A released file knows 2,887 of its tokenizer's codes by their own numbers, which are in a file apart.
"""

from pathlib import Path

from ldm import UserError
from ldm.exchange import whole_numbers
from ldm.exchange.clip import hf_text_spec, text_fit
from ldm.exchange.folder import find_weights, read_vocabulary
from ldm.exchange.image_tokenizers import PART, Joined, Sizes, vq_fit
from ldm.exchange.imported import Config, Fit, Imported
from ldm.exchange.keymap import Rule, merge, rename, renames
from ldm.exchange.weights import Weights
from ldm.io.fields import MAX_WIDTH, Fields

PIPELINE = "VQDiffusionPipeline"
EMPTY = "learned_classifier_free_sampling_embeddings"  # folder of the empty text
OURS = "ldm.models.code_denoiser.CodeDenoiser"
OPENER = "ldm.generators.discrete_diffusion.open_discrete_diffusion"
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


def is_released(weights: Weights) -> bool:
    """Whether a file holds the network of the released code."""
    return any(name.endswith(RELEASED_MARK) for name in weights.outline)


def import_released(weights: Weights) -> Imported:
    """The network of a released file: of its EMA, or of its whole model."""
    prefix = "transformer." * (f"transformer.{RELEASED_MARK}" in weights.outline)
    sizes, inner = Sizes(weights), f"{prefix}transformer."
    rows, width = sizes[f"{inner}content_emb.emb.weight"]
    length, context_dim = sizes[f"{prefix}empty_text_embed"]
    spec = {
        "_target_": OURS,
        **{"num_codes": rows - 1, "grid": sizes[f"{inner}content_emb.height_emb.weight"][0]},
        "num_steps": sizes[f"{inner}blocks.0.ln1.emb.weight"][0],
        **{"context_dim": context_dim, "context_length": length, "width": width},
        **{"depth": sizes.count(f"{inner}blocks.{{}}.ln2.weight"), "num_heads": HEADS},
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
