"""Joined captions: several captions of a picture as one text, mixed with single ones.

Each caption of a picture leaves something out; a text of several says more of it, as a long prompt does.
"""

from collections.abc import Callable, Sequence, Sized
from dataclasses import replace

from ldm import UserError
from ldm.codec import Codec
from ldm.data.augment import choose
from ldm.data.shards import PictureDataset
from ldm.data.stored import Recipe, stored_states
from ldm.randomness import keyed
from ldm.tokenizers import Tokenizer

SEED = 0  # which joins a picture has: the same for every training, so that one computation serves all
ENDS = (".", "!", "?", ":", ";")


class JoinedCaptions:
    """How a training keeps its captions: each by itself, and a few joins of several for each picture.

    Which captions a join has, how many (from two to `most`) and their order are a function of the picture's
    number. A position has a join with probability `share`, else the caption that it would have without joins;
    both are a function of seed and position. The texts are encoded once and stored, so that a step costs what
    it costs without joins. Pictures to validate on keep single captions.

    Args:
        most: captions of a join at most; 1 trains on single captions alone. A join that the tokenizer would
            cut is shortened by whole captions.
        share: of the positions that have a join.
        per_picture: joins of each picture; each takes the time and the room of a caption.
        texts: what is stored of a text: `stored_states` or `stored_tokens`.

    Raises UserError: an option that is out of range, or a training split without two captions of a picture.
    """

    def __init__(
        self,
        *,
        most: int = 3,
        share: float = 0.5,
        per_picture: int = 4,
        texts: Callable[..., Recipe] = stored_states,
    ) -> None:
        for name, value in (("most", most), ("per_picture", per_picture)):
            if value < 1:
                raise UserError(f"model.datamodule.texts.{name}={value} must be at least 1")
        if not 0 <= share <= 1:
            raise UserError(f"model.datamodule.texts.share={share} must lie between 0 and 1")
        self.most, self.share, self.per_picture, self.texts = most, share, per_picture, texts

    def __call__(self, pictures: PictureDataset, codec: Codec) -> Recipe:
        """The recipe of a split; of single captions for a split other than `train`, or without joins."""
        if pictures.split != "train" or self.most == 1 or self.share == 0:
            return self.texts(pictures, codec)
        if all(len(pictures.captions(number)) < 2 for number in range(len(pictures))):
            raise UserError(f"captions=joined: no picture of {pictures.index.root} has two: leave it out")

        def texts(number: int) -> list[str]:
            """The captions of a picture, and behind them its joins."""
            own = pictures.captions(number)
            return own + joins(own, codec.tokenizer, number=number, most=self.most, count=self.per_picture)

        recipe = self.texts(pictures, codec, texts=texts)
        made_by = {"most": self.most, "per_picture": self.per_picture, "seed": SEED}
        return replace(recipe, origin={**recipe.origin, "joins": made_by}, choose=self.choose)

    def choose(self, rows: Sized, *, seed: int, position: int) -> int:
        """Number of the row, of a picture's captions and joins, that it has at a position."""
        key, captions = {"seed": seed, "position": position}, len(rows) - self.per_picture
        if keyed.real(**key, stream="join") < self.share:
            return captions + keyed.integer(self.per_picture, **key, stream="join/number")
        return choose(range(captions), **key)


def joins(captions: Sequence[str], tokenizer: Tokenizer, *, number: int, most: int, count: int) -> list[str]:
    """The joins of the picture with a number, `count` of them; two may be equal.

    Of a picture of one caption, and where no two fit into the context, they are single captions.
    """
    made = []
    for place in range(number * count, (number + 1) * count):
        order = keyed.permutation(SEED, place, len(captions), stream="join/order")
        size = 2 + keyed.integer(max(1, most - 1), seed=SEED, position=place, stream="join/size")
        chosen = [captions[each] for each in order[:size]]
        while len(chosen) > 1 and tokenizer.count(joined(chosen)) > tokenizer.context_length:
            chosen.pop()
        made.append(joined(chosen))
    return made


def joined(captions: Sequence[str]) -> str:
    """Captions one after the other, with a full stop between two where the first has no such mark."""
    *before, last = captions
    ended = (each if each.endswith(ENDS) else f"{each}." for each in map(str.rstrip, before))
    return " ".join([*ended, last])
