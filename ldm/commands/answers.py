"""How a command that goes wrong ends: a sentence for its user's mistake, a traceback for a bug of ours."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ldm import UserError

# What a disk answers whatever a program does: it is full, read-only, not the user's, broken, or gone.
DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
)


def answer_errors(action: Callable[[], None], named: Callable[[], Iterable[str]] = tuple) -> None:
    """Runs an action; a mistake of the user ends in one sentence and exit status 1.

    Args:
        named: gives the texts among the action's options, some of which are paths.
    """
    try:
        action()
    except BrokenPipeError:  # the reader of our output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("ldm: interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        told = not isinstance(error, OSError) or isinstance(error, UserError) or is_of_disk(error, named())
        if os.environ.get("LDM_TRACEBACK") or not told:
            raise
        cause = f" ({error.__cause__})" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        refuse(one_line(f"{error}{cause}"))


def is_of_disk(error: OSError, named: Iterable[str]) -> bool:
    """Whether a system's error is of the user's disks, not of our code.

    It is one that no program causes, or about a path that an option names, one below it or one on the way to
    it. A file that is missing anywhere else is missing by our fault.
    """
    if error.errno in DISK:
        return True
    files = (error.filename, error.filename2)  # each may also be a number, or absent
    paths = [Path(os.fsdecode(file)).absolute() for file in files if isinstance(file, str | bytes | Path)]
    places = [Path(text).absolute() for text in named if text]
    return any(path.is_relative_to(place) or place.is_relative_to(path) for path in paths for place in places)


def one_line(text: str) -> str:
    """A text with a blank for each line break, and escapes for what can't be printed, such as a tab."""
    joined = re.sub(r"\s*[\r\n]+\s*", " ", text).strip()
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in joined)


def refuse(sentence: str) -> NoReturn:
    """Ends the program with a sentence on standard error."""
    print(f"ldm: {sentence}", file=sys.stderr)
    sys.exit(1)
