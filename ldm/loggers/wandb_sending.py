"""W&B's records are sent by a process of their own: a service that hangs or fails can't touch the training.

`python -m ldm.loggers.wandb_sending PARENT EARLIER... RECORD` sends the finished records first and then the
one that process PARENT is writing, live: people watch the curves of a training of days while it runs.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.distributed import follow_parent
from ldm.io.writing import appending

if TYPE_CHECKING:
    from wandb import Settings

ANSWER = 4.0  # seconds that the service has to answer whose key it is
QUERY = "query Viewer { viewer { id } }"
SHARED = "WANDB_SERVICE"  # variable: the wandb-core of another process, which ours must not depend on


def own_settings() -> "Settings":
    """W&B's settings of the environment and of the user's own file.

    W&B reads `wandb/settings` of the working folder, too. Whoever made that folder would choose the service
    that gets the key, and the account. Here it looks into the root folder instead.
    """
    from wandb import Settings

    home = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = Settings(root_dir=home.anchor or "/", settings_system=str(home / "settings"), silent=True)
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    settings.update_from_system_environment()
    return settings


def unsendable(settings: "Settings") -> str | None:
    """Why nothing can be sent now, or None if the service knows the key; takes at most `ANSWER` seconds."""
    from wandb.sdk.lib.wbauth import read_netrc_auth

    url = settings.base_url
    if settings.mode not in ("online", "shared"):
        return f"its mode is {settings.mode}"
    key = settings.api_key or read_netrc_auth(host=url)
    if key is None:
        return "there is no key; `wandb login` asks for one"
    found: list[str | None] = []
    asking = threading.Thread(target=lambda: found.append(_refusal(url, key)), daemon=True)
    asking.start()
    asking.join(ANSWER)  # of the whole exchange: a socket's timeout starts again with each byte
    return found[0] if found else f"{url} does not answer within {ANSWER:g} s"


def _refusal(url: str, key: str) -> str | None:
    """Why a service doesn't accept a key, or None if it does."""
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


class Sending:
    """A process that sends the last of some records while it is being written.

    On Linux it is killed with the process that started it.

    Args:
        records: folders `offline-run-*` of one run, oldest first, as absolute paths.
        folder: the run directory; the process writes its output to `wandb/sending.log` there.
        url: of the service.
    """

    def __init__(self, records: Sequence[Path], *, folder: Path, url: str) -> None:
        self.log = folder / "wandb" / "sending.log"
        environment = {name: value for name, value in os.environ.items() if name != SHARED} | {
            "WANDB_BASE_URL": url,
            "WANDB_DIR": str(folder),
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
        with appending(self.log, below=folder) as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(os.getpid()), *map(str, records)],
                cwd=folder.anchor,  # where W&B's command looks for `wandb/settings`, see `own_settings`
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                process_group=0,  # Ctrl-C lets the training finish, and its record be sent
            )

    def finish(self, *, patience: float) -> str | None:
        """Waits at most `patience` seconds until all is sent; returns why it is not, or None."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # W&B's own process is in the group, too
            self.process.wait()
            return f"the service had not received everything after {patience:g} s"
        return None if status == 0 else f"sending failed, see {self.log}"


def main(parent: int, records: Sequence[str]) -> None:
    """Sends records, the last one live, as long as the process that writes it lives."""
    follow_parent(parent)
    from wandb.cli import cli

    *earlier, last = records
    if earlier:
        cli.cli(["beta", "sync", "--yes", "-n", "1", *earlier], standalone_mode=False)
    cli.cli(["beta", "sync", "--yes", "--live", last], standalone_mode=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
