"""Writes a text encoder without layers: `python -m data_prep.words root=data/shapes out=data/shapes_words`.

It is a vocabulary learned from the training captions, and a fixed vector for each of its tokens. A training
with `codec.text_encoder=data/shapes_words` and a backbone that has text layers of its own, such as
`backbone=unet_joint`, learns to read together with learning to generate.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from data_prep.command_line import command_line, option
from ldm import UserError
from ldm.construct import construct
from ldm.data.shards import captions


@dataclass(kw_only=True)
class Options:
    """Whose captions are read, where the bundle goes, and its sizes."""

    root: str = option("data/shapes", "Folder of the prepared set.")
    out: str = option("data/shapes_words/bundle", "Folder of the bundle; it must not be there yet.")
    vocab_size: int = option(640, "Tokens of the vocabulary.")
    context_length: int = option(36, "Tokens of a caption, at most; what is beyond is cut.")
    width: int = option(128, "Numbers of a token's vector.")


def main(options: Options) -> None:
    """Writes the bundle.

    Raises:
        UserError: a vocabulary too small for its merges, or a context or width below 1.
        DataError: no such set.
        NameTaken: the folder is there already.
    """
    from ldm.checkpoints.bundle import Part  # import torch, seconds that --help does without
    from ldm.checkpoints.bundle_writer import write_bundle
    from ldm.tokenizers import train

    for name in ("context_length", "width"):
        if getattr(options, name) < 1:
            raise UserError(f"{name}={getattr(options, name)} must be at least 1")
    sizes = {"vocab_size": options.vocab_size, "context_length": options.context_length}
    tokenizer = train(texts=captions(root=options.root, split="train"), **sizes)
    spec = {"_target_": "ldm.models.text_encoders.TokenVectors", **sizes, "width": options.width}
    part = Part(spec=spec, state=construct(spec).state_dict())
    settings = {"origin": {"experiment": "data_prep.words", "data": Path(options.root).name}}
    written = write_bundle(
        Path(options.out), parts={"text_encoder": part}, tokenizer=tokenizer, settings=settings
    )
    print(f"{written}: {options.vocab_size} tokens, vectors of {options.width} numbers")


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
