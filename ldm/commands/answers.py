"""How a command ends after an error: one sentence for a user's mistake, a traceback for a bug of ours."""

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
from ldm.io.links import FULL

# Errors that no bug causes: the disk is full, read-only, somebody else's, broken, or gone.
DISK = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE)


def answer_errors(action: Callable[[], None], named: Callable[[], Iterable[str]] = tuple) -> None:
    """Runs an action; a mistake of the user ends in one sentence and exit status 1.

    Args:
        named: returns the texts among the action's options, some of which are paths.
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
        of_system = isinstance(error, OSError) and not isinstance(error, UserError)
        if os.environ.get("LDM_TRACEBACK") or (of_system and not is_of_disk(error, named())):
            raise
        cause = f" ({error.__cause__})" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        refuse(one_line(f"{error}{cause}"))


def is_of_disk(error: OSError, named: Iterable[str]) -> bool:
    """Whether an error of the system comes from the user's disk or paths, not from our code.

    It is one of DISK, or about a path that an option names, one below it or one above it. A file that is
    missing anywhere else is a bug.
    """
    if error.errno in DISK:
        return True
    files = (error.filename, error.filename2)  # each may also be a number, or absent
    paths = [Path(os.fsdecode(file)).absolute() for file in files if isinstance(file, str | bytes | Path)]
    places = [Path(text).absolute() for text in named if text]
    return any(path.is_relative_to(place) or place.is_relative_to(path) for path in paths for place in places)


def one_line(text: str) -> str:
    """A text with a blank for each line break, and escapes for characters that can't be printed."""
    joined = re.sub(r"\s*[\r\n]+\s*", " ", text).strip()
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in joined)


def refuse(sentence: str) -> NoReturn:
    """Ends the program with a sentence on standard error."""
    print(f"ldm: {sentence}", file=sys.stderr)
    sys.exit(1)
