"""The process that has the networks, as the server sees it: started, fed, stopped, replaced."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ldm import UserError
from ldm.serve.worker import Failed, Ready, Stop, run

PATIENCE = 0.5  # seconds that the process has to end before it is killed
PAUSE, MOST = 1.0, 60.0  # seconds between two starts of a process that dies at its start, doubled each time


class Networks:
    """One process, started at once; raises UserError with the sentence that refuses a bundle.

    Args:
        bundles: path of a bundle by the id of its model.
        chunk: pictures that one call makes; None: what suits the device.
    """

    def __init__(self, bundles: Mapping[str, str], *, chunk: int | None) -> None:
        self._arguments = (dict(bundles), chunk)
        self._closed, self._sending = False, threading.Lock()
        self._start()

    def _start(self) -> None:
        # threads that wait sleep and don't spin: beside a browser on the same cores that is many times faster
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # a new interpreter, not a fork: a forked child would share the server's sockets and threads
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._number = 0
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            raise UserError(f"the process that loads the bundles ended ({self.ending()})") from None
        if isinstance(message, Failed):
            raise UserError(message.sentence)
        self.ready: Ready = message

    def restart(self) -> None:
        """Starts a new process in the place of one that has ended, as often as that takes."""
        pause = PAUSE
        while not self._closed:
            try:
                return self._start()
            except (UserError, OSError) as error:  # OSError: the system allows no more processes now
                print(f"ldm: {error}: next start in {pause:.0f} s", file=sys.stderr, flush=True)
                time.sleep(pause)
                pause = min(2 * pause, MOST)

    def send(self, message: Any) -> None:
        """Gives the process something to do; raises EOFError where it is gone."""
        try:
            with self._sending:
                self._number = message.number
                self._connection.send(message)
        except OSError as error:
            raise EOFError from error

    def receive(self) -> Any:
        """Waits for the next message of the process; raises EOFError if the process has ended."""
        try:
            return self._connection.recv()
        except OSError as error:
            raise EOFError from error

    def stop(self) -> None:
        """Asks the process to end what it was last given, after the step that it is at."""
        with suppress(OSError), self._sending:  # it may be gone
            self._connection.send(Stop(self._number))

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def ending(self) -> str:
        """How a process that is gone ended, in words."""
        self._process.join(timeout=5)
        code = self._process.exitcode or 0
        with suppress(ValueError):  # most real-time signals have no name
            return signal.Signals(-code).name
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def close(self) -> None:
        """Ends the process, by force if need be."""
        self._closed = True
        self._process.terminate()
        self._process.join(timeout=PATIENCE)
        self._process.kill()
