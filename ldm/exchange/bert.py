"""Sentence encoders of BERT's architecture, in folders of transformers: config, weights and tokenizer."""

from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.exchange import whole_numbers
from ldm.exchange.folder import class_of, find_weights
from ldm.exchange.imported import Fit, Imported
from ldm.exchange.keymap import Rule, merge, rename, renames
from ldm.io.reading import MAX_WIDTH, Fields
from ldm.tokenizers.listed import UNKNOWN, WordPieces

KIND = "bert"
CONTEXT_LENGTH = 64  # four captions of a dozen words; BERT's own 512 would cost a denoiser 8 times as much
SIZES = {  # our options -> their fields, with their defaults
    "vocab_size": ("vocab_size", 30_522),
    "width": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
}
FIXED = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
POOLING = {
    "pooling_mode_mean_tokens": True,
    "pooling_mode_cls_token": False,
    "pooling_mode_max_tokens": False,
}
LAYER = {
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.wide",
    "output.dense": "mlp.narrow",
    "output.LayerNorm": "norm2",
}
# the pooler is a head of BERT's own training, which sentence encoders leave untrained
DROPPED = ("*position_ids", "*token_type_ids", "pooler.*")


def is_bert(path: Path) -> bool:
    """Whether a folder holds a BERT."""
    return path.is_dir() and (path / "config.json").is_file() and class_of(path) == (KIND, False)


def import_bert(folder: Path, *, context_length: int | None) -> Imported:
    """A sentence encoder with its tokenizer, which reads `context_length` tokens of a text.

    None stands for 64, or as many as the file has positions for.
    """
    config = Fields.read(folder / "config.json")
    config.only(FIXED)
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file():
        Fields.read(pooling).only(POOLING)
    sizes = whole_numbers(config, SIZES)
    if config.whole("intermediate_size", 3072, high=4 * MAX_WIDTH) != 4 * sizes["width"]:
        raise UserError(f"{config.name}: intermediate_size must be four times hidden_size, as in ours")
    most = config.whole("max_position_embeddings", 512, high=MAX_WIDTH)
    length = min(CONTEXT_LENGTH, most) if context_length is None else context_length
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
    spec = {"_target_": "ldm.models.bert.SentenceEncoder", **sizes, **own}
    fit = Fit(spec=spec, weights=find_weights(folder), rules=bert_rules(length), drop=DROPPED)
    return Imported.of({"text_encoder": fit}, tokenizer=tokenizer, left_out=["pooler"])


def bert_rules(context_length: int) -> list[Rule]:
    """Names of BertModel against those of :class:`ldm.models.bert.SentenceEncoder`."""
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
        *renames(LAYER, f"{layer}.", f"{ours}."),
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
