"""Seeds, and the 64-bit keys that a seed and a purpose make."""

import hashlib

from ldm import UserError

GENERATOR = "philox4x32-10"  # how records name what makes random numbers of seeds (philox.py)
EARLIER_GENERATOR = "mt19937"  # of pictures and runs whose record names none
SEED_LIMIT = 2**63
SEED = "must lie between 0 and 2**63 - 1 and be a whole number"


def is_seed(value: object) -> bool:
    """Whether a value is a whole number from 0 to 2**63 - 1; true and 1.0 are none."""
    return type(value) is int and 0 <= value < SEED_LIMIT


def check_seed(seed: object, name: str = "seed") -> None:
    """Raises UserError for what is no seed, with its name and what a seed is."""
    if not is_seed(seed):
        raise UserError(f"{name}={repr(seed)[:60]} {SEED}")


def key_of(seed: int, *purpose: object) -> int:
    """A hash of a seed and what it is used for: 64 bits, so that neighbouring seeds share nothing.

    Raises UserError as `check_seed` does.
    """
    check_seed(seed)
    # a separator, since 1 and 23 must not be hashed as 12 and 3
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
