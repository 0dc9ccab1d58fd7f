"""Commands in processes of their own that import nothing: forks of the process that runs the tests."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from hydra.core.global_hydra import GlobalHydra

started = subprocess.Popen
OPEN = "/proc/self/fd"


def start_forked(
    args: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
) -> "subprocess.Popen[Any]":
    """`subprocess.Popen`, but that `python -m <module> ...` begins with all that is imported here. Linux.

    Session, group, streams and variables are those of the options: the fork runs the command where it would
    otherwise become another program.
    """
    if list(args[:2]) != [sys.executable, "-m"]:
        return started(args, env=env, **options)
    before = set(os.listdir(OPEN))

    def act() -> None:
        for file in set(os.listdir(OPEN)) - before:  # Popen waits until its own is closed
            with suppress(OSError):
                os.close(int(file))
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        status = 1
        try:
            status = run(args)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    return started(args, preexec_fn=act, **options)


def run(args: Sequence[str]) -> int:
    """Runs `python -m <module> ...` here, as a new interpreter would; returns the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv, sys.orig_argv = list(args[2:]), list(args)
    GlobalHydra.instance().clear()  # of the command that started this one
    try:
        import_module(args[2]).main()
    except SystemExit as ended:
        return exit_status(ended)
    return 0


def exit_status(ended: SystemExit) -> int:
    """The status of an interpreter that ends so; it prints what is no number."""
    if isinstance(ended.code, int | None):
        return ended.code or 0
    print(ended.code, file=sys.stderr)
    return 1
