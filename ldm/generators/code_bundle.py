"""Opening the tokenizer of pictures that a training on codes names."""

from ldm.checkpoints.bundle import Bundle
from ldm.picture_codes import PictureCodes


def load_codes(*, image_tokenizer: str) -> PictureCodes:
    """The tokenizer of the bundle at a path; raises as `PictureCodes.open` does."""
    return PictureCodes.open(Bundle.open(image_tokenizer))
