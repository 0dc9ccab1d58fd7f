"""CLIP's own byte-pair vocabulary, from the wheel of open_clip or from a file."""

import gzip
import zlib
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ldm import UserError
from ldm.tokenizers import NUM_BYTE_TOKENS, NUM_CONTROL, Tokenizer, parse_merge

CLIP_VOCAB_SIZE = 49_408  # Radford et al. 2021, section 2.4
CLIP_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MAX_BYTES = 2**24  # of an unpacked vocabulary; CLIP's takes 3.2 MB


def clip_bpe(vocabulary: Path | str | None = None, *, context_length: int = 77, pad_id: int = 0) -> Tokenizer:
    """CLIP's own 49,408 tokens (Radford et al. 2021), as open_clip's SimpleTokenizer numbers them.

    `vocabulary` is the file bpe_simple_vocab_16e6.txt.gz, by default the one in the open-clip-torch wheel.
    open_clip pads with id 0, the text encoder of Stable Diffusion 1.x with the end token, 49,407. Two strings
    differ from open_clip, on purpose: its spellings <start_of_text> and <end_of_text> are plain text here.
    """
    path = _wheel_vocabulary() if vocabulary is None else Path(vocabulary)
    try:
        with gzip.open(path) as stream:
            lines = stream.read(MAX_BYTES).decode("utf-8").splitlines()
        num_merges = CLIP_VOCAB_SIZE - NUM_BYTE_TOKENS - NUM_CONTROL
        merges = [parse_merge(line) for line in lines[1 : num_merges + 1]]  # the first line names the version
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"CLIP's vocabulary {path} cannot be read ({error}): give the path of {CLIP_VOCABULARY}"
        ) from None
    return Tokenizer(merges, vocab_size=CLIP_VOCAB_SIZE, context_length=context_length, pad_id=pad_id)


def _wheel_vocabulary() -> Path:
    # by the wheel's list of files: importlib.resources would run open_clip's own imports, six seconds of them
    try:
        listed = files("open-clip-torch") or []
    except PackageNotFoundError:
        listed = []
    found = [Path(str(file.locate())) for file in listed if file.name == CLIP_VOCABULARY]
    if not found:
        raise UserError(
            f"{CLIP_VOCABULARY} was not found: pip install open-clip-torch, or give its path as vocabulary"
        )
    return found[0]
