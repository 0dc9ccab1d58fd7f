"""The training data of systems on codes: captions, and codes of pictures that are encoded once and stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from torch import Tensor

from ldm import UserError
from ldm.codec import Codec, PictureCodes
from ldm.data.augment import flip
from ldm.data.datamodule import PictureData
from ldm.data.features import ENCODED_AT_ONCE, Embedder, stored_embeddings
from ldm.data.latents import LatentData, StoredSplit
from ldm.data.shards import PictureDataset
from ldm.data.stored import Recipe, of_pictures
from ldm.models.picture_tokenizers import CodeLevel

MAX_CODES = 2**16


class CodeBatch(TypedDict):
    """Codes of pictures, each with one of its captions."""

    codes: Tensor  # int64, b n
    captions: list[str]  # b, one chosen per picture
    context: NotRequired[Tensor]  # float32, b m d: text states of the captions, where a codec encodes them
    embedding: NotRequired[Tensor]  # float32, b e: features of the pictures, where an embedder makes them
    position: Tensor  # int64, b
    index: Tensor  # int64, b


@dataclass(eq=False, kw_only=True)
class CodeSplit(StoredSplit):
    """Codes and captions of one split, by picture; where no codec encodes these, `encoded` is None."""

    levels: Sequence[CodeLevel]  # of a picture's codes

    def __post_init__(self) -> None:
        limits = [np.full(grid**2, num_codes, dtype=np.int64) for grid, num_codes in self.levels]
        self._limits = np.concatenate(limits)

    def sample(self, number: int, position: int) -> dict[str, Any]:
        """The sample of a position: the picture's codes, one caption, and its context if there is any.

        Raises DataError for codes that the tokenizer doesn't have.
        """
        reader, key = self.arrays["codes"].reader, {"seed": self.seed, "position": position}
        captions = reader.record(number)["texts"]
        choice = self.choose(captions, **key)
        rows = self.rows(number, mirrored=self.flips and flip(**key, text=captions[choice]))
        codes = rows.pop("codes").astype(np.int64)
        if codes.shape != self._limits.shape or (codes >= self._limits).any():
            raise reader.damaged(number, "holds codes that its tokenizer doesn't have")
        if self.encoded is not None:
            rows["context"] = self.encoded.read(number)[choice]
        floats = {name: row.astype(np.float32) for name, row in rows.items()}
        own = {"codes": codes, "captions": captions[choice], "position": position, "index": number}
        return own | floats


class CodeData(LatentData):
    """Batches of codes and captions, encoded once and kept on the disk.

    Args:
        pictures: the data set; its batch size, seed, workers and flips are used.
        codes: the tokenizer of the stage that is trained.
        codec: its text encoder makes the context of captions; None: batches have captions alone.
        embedder: makes features of pictures; None: batches have none.

    Raises UserError for pictures of another size than the tokenizer's, and as `LatentData` does.
    """

    def __init__(
        self,
        *,
        pictures: PictureData,
        codes: PictureCodes,
        codec: Codec | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        super().__init__(pictures=pictures, codec=codec)  # type: ignore[arg-type]
        if pictures.size != codes.net.size:
            raise UserError(f"data.size={pictures.size}: the tokenizer was trained on {codes.net.size} px")
        self.codes, self.embedder = codes, embedder

    def recipes(self, split: PictureDataset, *, mirrored: bool) -> dict[str, Recipe]:
        """How codes of a split are computed, and the context of its captions if there is a codec."""
        texts = {} if self.codec is None else {"texts": self.texts(split, self.codec)}
        if self.embedder is not None:
            texts["embedding"] = stored_embeddings(split, self.embedder, mirrored=mirrored)
        return {"codes": stored_codes(split, self.codes, mirrored=mirrored)} | texts

    def split(self, recipes: Mapping[str, Recipe], seed: int) -> CodeSplit:
        """One split: its arrays from the disk, or computed now."""
        arrays = {name: recipe.arrays() for name, recipe in recipes.items()}
        own = {"flips": recipes["codes"].origin["mirrored"], "levels": self.codes.net.levels}
        return CodeSplit(encoded=arrays.pop("texts", None), arrays=arrays, seed=seed, **own)

    def on_after_batch_transfer(self, batch: CodeBatch, dataloader_idx: int) -> CodeBatch:  # type: ignore[override]
        """The batch as it is."""
        return batch


def stored_codes(pictures: PictureDataset, codes: PictureCodes, *, mirrored: bool) -> Recipe:
    """The codes of each picture, uint16: a row (n,), and if `mirrored` one of the mirrored picture.

    Raises UserError for a tokenizer with more codes than that type has.
    """
    if (most := max(num_codes for _, num_codes in codes.net.levels)) > MAX_CODES:
        raise UserError(f"the tokenizer has {most} codes: at most {MAX_CODES} can be stored, in 16 bits each")
    made_by = {"image_tokenizer": codes.sha256}
    rows = {"kind": "codes", "dtype": np.uint16, "count": codes.net.length, "chunk": ENCODED_AT_ONCE}
    return of_pictures(pictures, codes.encode_images, made_by, mirrored=mirrored, **rows)
