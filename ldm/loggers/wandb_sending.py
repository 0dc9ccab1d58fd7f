"""W&B's records sent by a process of their own, so that whatever the service does, it does to that process.

The training itself never speaks to the service. `python -m ldm.loggers.wandb_sending PARENT EARLIER...
RECORD` sends the finished records first and then the one that process PARENT still writes, until its end.
It sends while the training runs, not once at its end: people watch the curves of a training of days.
"""

import configparser
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ldm.distributed.launch import PR_SET_PDEATHSIG
from ldm.io.writing import appending

ANSWER = 4.0  # seconds that the service has to say who we are
QUERY = "query Viewer { viewer { id } }"
SHARED = "WANDB_SERVICE"  # variable: another process's wandb-core, which ours must not lean on


class Sending:
    """A process that sends the last of some records while it is being written.

    It is killed with the process that started it (Linux).

    Args:
        records: folders `offline-run-*` of one run, oldest first, from the root.
        folder: the run directory; W&B's command leaves logs in its `wandb`, and what it says is there too.
        url: of the service. W&B would also read `wandb/settings` of its working folder, which a stranger may
            have made, and send the key where that says: it works in the root folder.
    """

    def __init__(self, records: Sequence[Path], *, folder: Path, url: str) -> None:
        self.log = folder / "wandb" / "sending.log"
        command = [sys.executable, "-P", "-m", __name__, str(os.getpid()), *map(str, records)]
        environment = {name: value for name, value in os.environ.items() if name != SHARED}
        environment |= {"WANDB_BASE_URL": url, "WANDB_DIR": str(folder)}
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        with appending(self.log, below=folder) as stream:
            self.process = subprocess.Popen(
                command,
                cwd=folder.anchor,
                env=environment | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                process_group=0,  # a signal to the training lets it finish
            )

    def finish(self, *, patience: float) -> str | None:
        """Waits until all is sent, but no longer than `patience` seconds; why it is not, or None."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # with the process that it started itself
            self.process.wait()
            return f"the service had not taken all after {patience:g} s"
        return None if status == 0 else f"sending failed, see {self.log}"


def unsendable() -> str | None:
    """Why nothing can be sent now, or None if the service knows the key; says so within `ANSWER` seconds."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return f"WANDB_MODE is {os.environ['WANDB_MODE']}"
    try:
        url = address()
        key = api_key(url)
    except Exception as error:  # what W&B's own settings hold is no reason to record nothing
        return f"its settings can't be read ({error})"
    if key is None:
        return "there is no key; `wandb login` asks for one"
    found: list[str | None] = []
    asking = threading.Thread(target=lambda: found.append(_refusal(url, key)), daemon=True)
    asking.start()
    asking.join(ANSWER)  # the whole exchange: a service that drips keeps the timeout of a socket waiting
    return found[0] if found else f"{url} does not answer within {ANSWER:g} s"


def address() -> str:
    """Where the service is: as the environment says, else the user's own settings of W&B.

    `wandb/settings` of the working folder, which W&B reads too, has no say: whoever made that folder would
    be sent the key.
    """
    from wandb import Settings

    own = configparser.ConfigParser(interpolation=None)
    home = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    own.read(Path(home).expanduser() / "settings", encoding="utf-8")
    url = os.environ.get("WANDB_BASE_URL") or own.get("default", "base_url", fallback=None)
    return (Settings(base_url=url) if url else Settings()).base_url


def api_key(url: str) -> str | None:
    """The key for a service: of the environment, else of `wandb login`."""
    from wandb.sdk.lib.wbauth import read_netrc_auth

    return os.environ.get("WANDB_API_KEY") or read_netrc_auth(host=url)


def _refusal(url: str, key: str) -> str | None:
    """Why a service doesn't take what is sent with a key."""
    import requests

    try:
        answer = requests.post(
            f"{url}/graphql",
            json={"query": QUERY},
            auth=("api", key),
            timeout=2 * ANSWER,  # by then nobody waits any more
            allow_redirects=False,
        )
        answer.raise_for_status()
        known = answer.json()["data"]["viewer"]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        return f"{url} does not answer as W&B does ({error})"
    return None if known else f"{url} does not know the key"


def main(parent: int, records: Sequence[str]) -> None:
    """Sends records, the last one live, for as long as the process that writes it is there."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before this line
        return
    from wandb.cli import cli

    *earlier, last = records
    if earlier:
        cli.cli(["beta", "sync", "--yes", "-n", "1", *earlier], standalone_mode=False)
    cli.cli(["beta", "sync", "--yes", "--live", last], standalone_mode=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
