"""A local page and an HTTP API that generate pictures: `python -m ldm.serve`."""

from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm import UserError
from ldm.config import entry, plain
from ldm.serve.guard import address, listen, token_of


@entry("serve")
def main(config: DictConfig) -> None:
    """Serves until it is interrupted."""
    options = plain(config)
    check_options(options)
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"ldm.serve needs {error.name}: pip install 'ldm[serve]', or make setup") from error

    from ldm.serve.app import create_app, run
    from ldm.serve.history import History
    from ldm.serve.networks import Networks
    from ldm.serve.service import Service

    host = options["host"]
    token = token_of(host, options["token"])
    with (
        closing(listen(host, options["port"])) as listening,
        closing(History(Path(options["state"]))) as history,
        closing(Networks(named(bundles_of(options)), chunk=options["chunk"])) as networks,
        closing(Service(networks, history, limit=options["queue"], examples=options["examples"])) as service,
    ):
        app = create_app(service, host=host, token=token, runs=Path(options["runs"]))
        port = listening.getsockname()[1]
        print(f"open {address(host, port, token)}    Ctrl-C ends the server", flush=True)
        run(app, service, listening)


def check_options(options: dict[str, Any]) -> None:
    """Refuses a value that can't be used, before anything is loaded; raises UserError with its key."""
    for name, high in (("queue", 100_000), ("chunk", 256)):
        value = options[name]
        if value is not None and not (type(value) is int and 1 <= value <= high):
            raise UserError(f"{name}={value} must be a whole number from 1 to {high:,}")
    for name in ("bundles", "examples"):
        value = options[name] or []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise UserError(f"{name}={value} is no list of texts: write '{name}=[a,b]'")


def bundles_of(options: dict[str, Any]) -> list[str]:
    """The paths of the bundles, each once; the first one is the default."""
    return list(dict.fromkeys(options["bundles"] or [options["bundle"]]))


def named(bundles: list[str]) -> dict[str, str]:
    """Paths of bundles by ids: an experiment and its run below `runs/`, elsewhere the name of the folder."""
    found: dict[str, str] = {}
    for path in bundles:
        parts = [part for part in Path(path).parts if part not in ("/", "bundle")]
        own = parts[parts.index("runs") + 1 :] if "runs" in parts else parts[-1:]
        name = "-".join(own) or "bundle"
        name = "".join(each if each.isalnum() and each.isascii() else "-" for each in name.lower())
        while name in found:
            name += "-2"
        found[name] = path
    return found


if __name__ == "__main__":
    main()
