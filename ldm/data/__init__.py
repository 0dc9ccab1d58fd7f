"""Pictures with captions: from prepared shards or streamed tars to batches, in a resumable order."""

from ldm import UserError


class DataError(UserError):
    """Shards, an index or samples that can't be used; the sentence names the file and the remedy."""
