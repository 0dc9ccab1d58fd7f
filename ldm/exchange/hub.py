"""Where weights come from: a path, a repository of a hub at one commit, or a published tag of open_clip."""

import re
from dataclasses import dataclass
from pathlib import Path

from ldm import UserError

HUB, OPENCLIP = "hf://", "open_clip://"
PINNED = re.compile(r"hf://([\w.-]+/[\w.-]+)@([0-9a-f]{40})(?:/(.+))?")
TAGGED = re.compile(r"open_clip://([\w.-]+)/([\w.-]+)")
KINDS = ["*.json", "*.txt", "*.safetensors"]  # of a folder on a hub: neither pickles nor code are fetched


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights that lie on this machine.

    Attributes:
        path: the file or folder.
        name: what the user called it.
        model: the model of open_clip that the tag is of, else None.
        quick_gelu: whether the tag means OpenAI's own activation, whatever the model's config says.
        pixels: mean and deviation of the pictures it was trained on, in units of [0, 1], else CLIP's.
    """

    path: Path
    name: str
    model: str | None = None
    quick_gelu: bool = False
    pixels: tuple[list[float], list[float]] | None = None


def locate(name: str) -> Source:
    """Finds weights by their path, `hf://owner/name@commit[/file]` or `open_clip://model/tag`.

    Raises:
        UserError: a name of another form, nothing there, or a hub out of reach.
    """
    if name.startswith(HUB):
        return Source(path=_fetch(name), name=name)
    if name.startswith(OPENCLIP):
        return _tagged(name)
    path = Path(name)
    if not path.exists():
        raise UserError(
            f"from={name} is not there: hf download <owner>/<name> --revision <commit> --local-dir {name}"
        )
    return Source(path=path, name=name)


def _fetch(name: str) -> Path:
    match = PINNED.fullmatch(name)
    if match is None:
        raise UserError(
            f"from={name} is not pinned: write hf://owner/name@commit, with the 40 digits of a commit, "
            "since a branch or a tag can be moved"
        )
    repository, commit, file = match.groups()
    target = f"models/{repository.partition('/')[2]}"
    command = f"hf download {repository} {file or ''} --revision {commit} --local-dir {target}"
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(f"from={name} wants huggingface_hub: pip install huggingface_hub") from error
    try:
        if file:
            return Path(hf_hub_download(repository, file, revision=commit))
        return Path(snapshot_download(repository, revision=commit, allow_patterns=KINDS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"from={name} was not fetched ({type(error).__name__}): where there is a network, "
            f"{' '.join(command.split())}; then from={target}"
        ) from None


def _tagged(name: str) -> Source:
    match = TAGGED.fullmatch(name)
    if match is None:
        raise UserError(f"from={name} is no tag of open_clip: write open_clip://ViT-B-32/openai")
    model, tag = match.groups()
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    published = get_pretrained_cfg(model, tag)
    if not published:
        tags = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        raise UserError(f"open_clip has no weights {tag!r} of {model!r}; there are: {tags}")
    try:
        path = Path(download_pretrained(published))
    except Exception as error:  # whatever the client of the day raises without a network
        where = published.get("url") or f"https://huggingface.co/{published.get('hf_hub')}"
        raise UserError(
            f"from={name} was not fetched ({type(error).__name__}): fetch {where} where there is a network; "
            f"then from=<file> architecture={model}"
        ) from None
    return Source(
        path=path,
        name=name,
        model=model,
        quick_gelu=bool(published.get("quick_gelu", False)),
        pixels=(list(published["mean"]), list(published["std"])),
    )
