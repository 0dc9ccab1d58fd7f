"""Folders of diffusers and transformers: a pipeline, one network with its config, and a tokenizer's files.

Among them are sentence encoders of BERT's architecture with their tokenizer.
"""

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from ldm import UserError
from ldm.exchange import whole_numbers
from ldm.exchange.clip import import_text, import_transformers, import_vision, text_fit
from ldm.exchange.diffusers import CONFIGS, from_configs, unet_spec, vae_latents, vae_spec
from ldm.exchange.imported import RECORD, TENSORS, Fit, Imported
from ldm.exchange.keymap import Rule, merge, rename, renames
from ldm.exchange.names import unet_rules, vae_rules
from ldm.exchange.schedulers import differences
from ldm.exchange.weights import Weights
from ldm.io.fields import MAX_WIDTH, Fields
from ldm.io.reading import MAX_JSON, read_json
from ldm.tokenizers import Merge, Tokenizer
from ldm.tokenizers.listed import UNKNOWN, WordPieces

INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS, VARIANTS = (".safetensors", ".bin"), ("", ".fp16", ".bf16")
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
READ = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
START, END = "<|startoftext|>", "<|endoftext|>"
VERSION = "#version: 0.2"  # first line of a merges.txt
BERT_CONTEXT = 64  # four captions of a dozen words; BERT's own 512 would cost a denoiser 8 times as much
BERT_SIZES = {  # our options -> their fields, with their defaults
    "vocab_size": ("vocab_size", 30_522),
    "width": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
}
BERT_FIXED = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
BERT_POOLING = {
    "pooling_mode_mean_tokens": True,
    "pooling_mode_cls_token": False,
    "pooling_mode_max_tokens": False,
}
BERT_LAYER = {
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.wide",
    "output.dense": "mlp.narrow",
    "output.LayerNorm": "norm2",
}
# the pooler is a head of BERT's own training, which sentence encoders leave untrained
BERT_DROPPED = ("*position_ids", "*token_type_ids", "pooler.*")


def class_of(folder: Path) -> tuple[str, bool]:
    """The class or model type in a folder's config, and whether it is a pipeline's."""
    is_pipeline = (folder / INDEX).is_file()
    config = Fields.read(folder / (INDEX if is_pipeline else "config.json")).values
    return str(config.get("_class_name") or config.get("model_type")), is_pipeline


def import_pipeline(folder: Path, *, text_state: str | None) -> Imported:
    """A whole pipeline: three networks, tokenizer, process and sampler."""
    index = Fields.read(folder / INDEX)
    kind = index.values.get("_class_name")
    if kind not in PIPELINES:
        raise UserError(f"{folder} is a {kind}: only {' and '.join(PIPELINES)} have our three networks")
    configs = {name: Fields.read(_config(folder, name)) for name in CONFIGS}
    pipeline = from_configs(configs)
    text = text_fit(pipeline.text_encoder, find_weights(folder / "text_encoder"), state=text_state)
    fits = {
        "backbone": _unet(find_weights(folder / "unet"), configs["unet"]),
        "autoencoder": _vae(find_weights(folder / "vae"), configs["vae"]),
        "text_encoder": text,
    }
    sizes = {name: text.spec[name] for name in ("context_length", "vocab_size")}
    held = {key for key, value in index.values.items() if isinstance(value, list) and value[:1] != [None]}
    found = Imported.of(
        fits,
        tokenizer=read_vocabulary(folder / "tokenizer", **sizes),
        settings=pipeline.settings(),
        left_out=sorted(held - READ) + differences(configs["scheduler"]),
        notes=_other_class(configs["scheduler"], index),
    )
    record, tensors = folder / RECORD, folder / TENSORS
    if not record.is_file():
        return found
    kept = Weights(tensors).load() if tensors.is_file() else {}
    return found.restored(read_json(record), kept, where=record)


def import_network(folder: Path, *, text_state: str | None) -> Imported:
    """The one network of a folder with a config.json."""
    kind, _ = class_of(folder)
    if kind not in NETWORKS:
        raise UserError(f"{folder} holds a {kind}: only a pipeline or {', '.join(NETWORKS)} are covered")
    return NETWORKS[kind](find_weights(folder), Fields.read(folder / "config.json"), text_state)


def find_weights(folder: Path) -> Weights:
    """The weights in a folder: safetensors rather than torch's own, 32 bits rather than a variant in 16."""
    for ending, variant, stem in product(ENDINGS, VARIANTS, STEMS):
        single, cut = f"{stem}{variant}{ending}", f"{stem}{ending}.index{variant}.json"
        for path in (folder / single, folder / cut, folder / f"{single}.index.json"):
            if path.is_file():
                note = f"{folder.name}/{path.name} was read, because there is no file without {variant}"
                return Weights(path, note=note if variant else "")
    raise UserError(
        f"{folder} lacks its weights: hf download <owner>/<name> --include '{folder.name}/*' "
        f"--local-dir {folder.parent}"
    )


def ids(merges: Sequence[Merge], *, vocab_size: int) -> dict[str, int]:
    """Every token with its id: bytes, bytes that end a word, merges, and last of all start and end."""
    symbols = sorted(ByteLevel.alphabet())  # by code point, which is GPT-2's order
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    numbered = {token: number for number, token in enumerate(tokens)}
    return numbered | {START: vocab_size - 2, END: vocab_size - 1}


def padding(tokenizer: Tokenizer) -> str:
    """The token with which a tokenizer pads; an id without a spelling is refused."""
    for token, number in ids(tokenizer.merges, vocab_size=tokenizer.vocab_size).items():
        if number == tokenizer.pad_id:
            return token
    raise UserError(f"the tokenizer's pad_id={tokenizer.pad_id} has no spelling, which diffusers needs")


def read_vocabulary(folder: Path, *, context_length: int, vocab_size: int) -> Tokenizer:
    """The tokenizer in the files of a CLIPTokenizer: ids in our order, sizes as the text encoder's."""
    vocabulary, merges = tables(folder)
    wanted = ids(merges, vocab_size=vocab_size)
    if vocabulary != wanted:
        strange, _ = min(vocabulary.items() ^ wanted.items(), key=str)
        raise UserError(f"{folder}: token {strange!r} has another id than in CLIP's order of {vocab_size}")
    paths = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
    found = [Fields.read(path).values for path in paths if path.is_file()]
    config = Fields(str(folder), {key: value for values in found for key, value in values.items()})
    length = config.whole("model_max_length", context_length, high=10**31)  # a huge one stands for none
    if length != context_length and length <= MAX_WIDTH:
        raise UserError(f"{folder}: model_max_length={length}, but the text encoder reads {context_length}")
    pad = config.values.get("pad_token", END)
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if not isinstance(pad, str) or pad not in vocabulary:
        raise UserError(f"{folder}: pad_token={pad!r} is not in the vocabulary")
    return Tokenizer(merges, vocab_size=vocab_size, context_length=context_length, pad_id=vocabulary[pad])


def write_vocabulary(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the four files that CLIPTokenizer.from_pretrained reads.

    It also reads the padding token in a prompt as padding, which ours does not.
    """
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding(tokenizer)}
    lines = [VERSION, *(f"{left} {right}" for left, right in tokenizer.merges)]
    config = {"model_max_length": tokenizer.context_length, "do_lower_case": True, "add_prefix_space": False}
    contents = {
        "vocab": ids(tokenizer.merges, vocab_size=tokenizer.vocab_size),
        "special_tokens_map": special,
        "tokenizer_config": {"tokenizer_class": "CLIPTokenizer", **config, **special},
    }
    folder.mkdir(parents=True)
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, content in contents.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def tables(folder: Path, prefix: str = "") -> tuple[dict[str, int], list[Merge]]:
    """Ids and merges, from vocab.json and merges.txt, or from the tokenizer.json of transformers 5.

    The names of the first two may begin with a prefix.
    """
    if prefix or (folder / "vocab.json").is_file():
        vocabulary = dict(Fields.read(folder / f"{prefix}vocab.json").values)
        path = folder / f"{prefix}merges.txt"
        if not path.is_file() or path.stat().st_size > MAX_JSON:
            raise UserError(f"{path} is missing or has more than {MAX_JSON} bytes: fetch the folder again")
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        pairs: list[Any] = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    else:
        fields = Fields.read(folder / "tokenizer.json")
        model = fields.mapping("model", {})
        vocabulary = dict(model.mapping("vocab", {}).values)
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.entries("merges")]
        for entry in fields.entries("added_tokens"):
            added = Fields.of(entry, name=f"{fields.name}: added_tokens")
            vocabulary[added.text("content")] = added.whole("id", low=0, high=MAX_WIDTH)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{folder}: the merges are damaged: fetch the folder again")
    if not all(isinstance(number, int) for number in vocabulary.values()):
        raise UserError(f"{folder}: the vocabulary is damaged, an id is no number: fetch the folder again")
    return vocabulary, [(str(left), str(right)) for left, right in pairs]


def _config(folder: Path, name: str) -> Path:
    path = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
    if not path.is_file():
        raise UserError(
            f"{folder} lacks {path.relative_to(folder)}: hf download <owner>/<name> --include '{name}/*' "
            f"--local-dir {folder}"
        )
    return path


def _other_class(scheduler: Fields, index: Fields) -> list[str]:
    """A note if the index names another scheduler than the scheduler's own config."""
    entry, own = index.values.get("scheduler"), scheduler.values.get("_class_name")
    named = entry[-1] if isinstance(entry, list) and entry else None
    if named in (None, own) or own is None:
        return []
    return [f"{INDEX} names a {named}, scheduler_config.json a {own}: the latter was read"]


def _unet(weights: Weights, config: Fields) -> Fit:
    rules = unet_rules(linear_projection=config.flag("use_linear_projection"))
    return Fit(spec=unet_spec(config), weights=weights, rules=rules)


def _vae(weights: Weights, config: Fields) -> Fit:
    return Fit(spec=vae_spec(config), weights=weights, rules=vae_rules(weights.outline))


def _import_unet(weights: Weights, config: Fields, _: str | None) -> Imported:
    settings = {"linear_projection": config.flag("use_linear_projection")}
    return Imported.of({"backbone": _unet(weights, config)}, settings=settings)


def _import_vae(weights: Weights, config: Fields, _: str | None) -> Imported:
    return Imported.of({"autoencoder": _vae(weights, config)}, settings={"latents": vae_latents(config)})


NETWORKS: dict[str, Callable[[Weights, Fields, str | None], Imported]] = {  # by class or type of model
    "UNet2DConditionModel": _import_unet,
    "AutoencoderKL": _import_vae,
    "clip_text_model": import_text,
    "clip_vision_model": import_vision,
    "clip": import_transformers,
}


def is_bert(path: Path) -> bool:
    """Whether a folder holds a BERT."""
    return path.is_dir() and (path / "config.json").is_file() and class_of(path) == ("bert", False)


def import_bert(folder: Path, *, context_length: int | None) -> Imported:
    """A sentence encoder with its tokenizer, which reads `context_length` tokens of a text.

    None stands for 64, or as many as the file has positions for.
    """
    config = Fields.read(folder / "config.json")
    config.only(BERT_FIXED)
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file():
        Fields.read(pooling).only(BERT_POOLING)
    sizes = whole_numbers(config, BERT_SIZES)
    if config.whole("intermediate_size", 3072, high=4 * MAX_WIDTH) != 4 * sizes["width"]:
        raise UserError(f"{config.name}: intermediate_size must be four times hidden_size, as in ours")
    most = config.whole("max_position_embeddings", 512, high=MAX_WIDTH)
    length = min(BERT_CONTEXT, most) if context_length is None else context_length
    if type(length) is not int or not 3 <= length <= most:
        raise UserError(
            f"context_length={length} must be a whole number between 3 and the {most} positions of {folder}"
        )
    tokenizer = read_word_pieces(folder, context_length=length)
    if tokenizer.vocab_size > sizes["vocab_size"]:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, but vocab_size in config.json is "
            f"{sizes['vocab_size']}: fetch the folder again"
        )
    own = {"context_length": length, "pad_id": tokenizer.pad_id}
    spec = {"_target_": "ldm.models.text_encoders.SentenceEncoder", **sizes, **own}
    fit = Fit(spec=spec, weights=find_weights(folder), rules=bert_rules(length), drop=BERT_DROPPED)
    return Imported.of({"text_encoder": fit}, tokenizer=tokenizer, left_out=["pooler"])


def bert_rules(context_length: int) -> list[Rule]:
    """Names of BertModel against those of :class:`ldm.models.text_encoders.SentenceEncoder`."""
    layer, ours = "encoder.layer.{}", "blocks.{}"
    places = Rule(  # every token of a caption is of the first segment
        theirs=("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"),
        ours=("positions",),
        read=lambda tables: [tables[0][:context_length] + tables[1][0]],
    )
    return [
        rename("embeddings.word_embeddings.weight", "tokens.weight"),
        places,
        rename("embeddings.LayerNorm.*", "norm.*"),
        merge(
            [f"{layer}.attention.self.{x}.*" for x in ("query", "key", "value")], f"{ours}.attention.qkv.*"
        ),
        *renames(BERT_LAYER, f"{layer}.", f"{ours}."),
    ]


def read_word_pieces(folder: Path, *, context_length: int) -> WordPieces:
    """The tokenizer in a folder's tokenizer.json, which must be that of an uncased BERT.

    Raises UserError: another kind of tokenizer, or ids that have gaps.
    """
    fields = Fields.read(folder / "tokenizer.json")
    model, normalizer = fields.mapping("model"), fields.mapping("normalizer")
    model.only({"type": "WordPiece", "unk_token": UNKNOWN, "continuing_subword_prefix": "##"})
    model.only({"max_input_chars_per_word": 100})  # longer ones are unknown
    normalizer.only({"type": "BertNormalizer", "lowercase": True, "clean_text": True})
    normalizer.only({"handle_chinese_chars": True, "strip_accents": None})
    fields.mapping("pre_tokenizer").only({"type": "BertPreTokenizer"})
    held: dict[str, Any] = dict(model.mapping("vocab").values)
    by_id = {number: token for token, number in held.items() if type(number) is int}
    if sorted(by_id) != list(range(len(held))):
        raise UserError(f"{fields.name}: the ids of the vocabulary are not 0, 1, 2, ...: fetch it again")
    return WordPieces([by_id[number] for number in range(len(by_id))], context_length=context_length)
