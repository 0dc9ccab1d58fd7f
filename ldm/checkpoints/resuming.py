"""What decides a training's result, and whether a command may resume a run: every difference has a name.

Options are compared by their values, except those that hold paths: of a data set or a bundle the contents are
compared, so that a copy elsewhere is the same, and other contents under the same path are not.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.checkpoints.loading import read_state
from ldm.checkpoints.provenance import ASIDE
from ldm.construct import MOVED
from ldm.data import DataError
from ldm.data.index import FILE_NAME, ShardIndex
from ldm.distributed.ranks import world_size

Flat = dict[str, Any]  # value by dotted key
SHOWN = 5  # differences that a sentence lists
FIXED = (  # of these and what lies below them a run keeps what it was started with
    *("backbone", "autoencoder", "text_encoder", "image_encoder", "tokenizer", "codec", "init"),
    *("process.schedule", "process.prediction", "process.network_time"),
    *("model.stage._target_", "model.stage.net", "model.stage.discriminator"),
    *("model.datamodule._target_", "data._target_", "optimizer._target_"),
    *("trainer.accumulate_grad_batches", "callbacks.averages.lengths"),
)
LABELS = ("name", "patience")  # at the root; the second one is in configs of earlier versions
FREE = ("backbone.checkpointing",)  # below a fixed key, and may change all the same
BUNDLES = {  # path of a bundle: what is read of it there
    "codec.autoencoder": ("parts.autoencoder", "latents"),
    "codec.text_encoder": ("parts.text_encoder", "tokenizer"),
    "init": ("parts.backbone", "process", "latents", "parts.autoencoder", "parts.text_encoder"),
}


class Difference(NamedTuple):
    """Two values of one option, null for none; where contents differ, with the start of their sha256."""

    old: Any
    new: Any


def contents(config: Mapping[str, Any]) -> dict[str, Any]:
    """sha256 of what a training reads, by the option that holds its path; what can't be read is left out.

    Beside them the number of ranks, which no option tells where devices are `auto` or srun starts the tasks.
    """
    found: dict[str, Any] = {"ranks": world_size()}
    stage, options = config.get("model", {}).get("stage", {}), flat(config)
    root = options.get("data.root")
    if root is not None and (Path(root) / FILE_NAME).is_file():
        with suppress(DataError):  # building the data says what is wrong with it
            found["data.root"] = ShardIndex.load(root).sha256
    for key, entries in BUNDLES.items():
        if options.get(key) is None or ("codec" if key != "init" else "initial") not in stage:
            continue
        with suppress(BundleError, OSError):  # building the stage says what is wrong with it
            bundle = flat(Bundle.open(options[key]).config, aside=frozenset())
            read = {name: value for name, value in bundle.items() if is_below(name, entries)}
            found[key] = hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
    return found


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    read: Mapping[str, Any],
    reads: Mapping[str, Any],
    aliases: Mapping[str, str],
) -> dict[str, Difference]:
    """What decides the result and is not the same in two configs, by option.

    Args:
        old, new: configs of a run and of the command that would resume it.
        read, reads: `contents` of both.
        aliases: keys of `new` that repeat another key's value, and that key.
    """
    was, asked = flat(old), flat(new)
    found = {}
    for key in sorted(was.keys() | asked.keys()):
        source = source_of(key, aliases)
        repeated = source != key and was.get(key) == was.get(source)
        if key in LABELS or repeated or (key in read and key in reads):
            continue
        if _now(was.get(key)) != _now(asked.get(key)):
            found[key] = Difference(was.get(key), asked.get(key))
    for key in read.keys() & reads.keys():
        if read[key] != reads[key]:
            found[key] = Difference(_content(was.get(key), read[key]), _content(asked.get(key), reads[key]))
    return found


def _now(value: Any) -> Any:
    """A value of an earlier version's config, with the name that a target has in this one."""
    return MOVED.get(value, value) if isinstance(value, str) else value


def _content(path: Any, content: Any) -> Any:
    return content if path is None else f"{path} (sha256 {content[:12]})"


def replaced(found: Mapping[str, Difference], old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the configs are equal, and only files under the same paths have other contents."""
    was, asked = flat(old), flat(new)
    return bool(found) and all(was.get(key) == asked.get(key) for key in found)


def check_changes(found: Mapping[str, Difference], changes: Sequence[str], *, run: Path) -> None:
    """Refuses to resume a run with options that differ and are not listed, or that no run can change.

    Raises:
        UserError: the options, both values of each, and what to type.
    """
    fixed = {key: each for key, each in found.items() if is_below(key, FIXED) and key not in FREE}
    if fixed:
        raise UserError(
            f"{run} was trained with {told(fixed)}, which can't change within a run: leave it as it was, or "
            "make a new run with resume=never"
        )
    unlisted = {key: each for key, each in found.items() if not is_below(key, changes)}
    if unlisted:
        raise UserError(
            f"{run} was trained with {told(unlisted)}: to resume it with the new values type "
            f"'resume_changes=[{','.join(unlisted)}]', for a new run resume=never"
        )


def check_state(state: Path, stage: nn.Module) -> None:
    """Refuses a checkpoint whose weights are not those of the stage that is to resume from it.

    Raises:
        UserError: a weight that only one of them has, or of another shape.
    """
    if state.is_dir():  # a sharded checkpoint is read after the stage has been sharded
        return
    saved = read_state(state)["state_dict"]
    both = (saved, stage.state_dict())
    shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in both)
    different = sorted(name for name in shapes.keys() | wanted if shapes.get(name) != wanted.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{state} is of another network: {len(different)} weights differ, such as {name} of shape "
            f"{shapes.get(name)} where this training has {wanted.get(name)}: leave the run's options as they "
            "were, or make a new run with resume=never"
        )


def told(found: Mapping[str, Difference]) -> str:
    """Differences in words."""
    shown = {key: ["null" if value is None else value for value in each] for key, each in found.items()}
    words = [f"{key}={old} and you ask for {new}" for key, (old, new) in shown.items()]
    left = f", and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + left


def flat(node: Mapping[str, Any], prefix: str = "", *, aside: frozenset[str] = ASIDE) -> Flat:
    """Values of nested mappings by dotted key, without null ones and those that don't decide a result."""
    return dict(_leaves(node, prefix, aside))


def _leaves(node: Mapping[str, Any], prefix: str, aside: frozenset[str]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key in aside or value is None:
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.", aside)
        else:
            yield f"{prefix}{key}", value


def source_of(key: str, aliases: Mapping[str, str]) -> str:
    """The key whose value another one repeats, or the key itself."""
    for _ in range(len(aliases)):  # an alias may lead to another one
        found = next((alias for alias in aliases if is_below(key, (alias,))), None)
        if found is None:
            break
        key = aliases[found] + key.removeprefix(found)
    return key


def is_below(key: str, keys: Sequence[str]) -> bool:
    """Whether a key is one of some keys, or lies below one."""
    return any(key == each or key.startswith(f"{each}.") for each in keys)
