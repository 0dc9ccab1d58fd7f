"""What decides a training's result: what runs are compared by, and what `init` brings along.

Options are compared by their values, except those that hold paths: of a data set or a bundle the contents are
compared, so that a copy elsewhere is the same, and other contents under the same path are not.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.checkpoints.training_state import read_state
from ldm.construct import moved
from ldm.data import DataError
from ldm.data.index import FILE_NAME, ShardIndex
from ldm.diffusion.process import READ_BY_DENOISER
from ldm.distributed.ranks import world_size

SHOWN = 5  # differences that a sentence lists
ASIDE = frozenset(  # keys, at any depth, that change what a training costs or prints and not what it comes to
    {
        *("num_workers", "worker_timeout", "cache", "max_time"),
        *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "summary"),
        *("saving", "pace", "report", "remaining", "samples", "reconstructions", "retrieved"),
    }
)
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
    for key in BUNDLES:
        if options.get(key) is not None and ("codec" if key != "init" else "initial") in stage:
            with suppress(BundleError, OSError):  # building the stage says what is wrong with it
                read = json.dumps(read_at(Bundle.open(options[key]), key), sort_keys=True)
                found[key] = hashlib.sha256(read.encode()).hexdigest()
    return found


def read_at(bundle: Bundle, key: str) -> dict[str, Any]:
    """The entries of a bundle that a training reads if an option of `BUNDLES` names it, by dotted key."""
    entries = flat(bundle.config, aside=frozenset())
    return {name: value for name, value in entries.items() if is_below(name, BUNDLES[key])}


def follow_init(config: DictConfig, typed: Sequence[str]) -> Iterator[str]:
    """Sets process and codec of a config to those of its `init`; yields a line for each that was another.

    Weights mean something only under the process that they were trained with, and for the latents and text
    states of their own codec. Both come from the bundle, whatever an experiment says.

    Args:
        typed: overrides of the command line. A key that is among them stays as it is, which a line says.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
    """
    if config.get("init") is None or "initial" not in config.model.stage:
        return
    bundle = Bundle.open(config.init)
    own, process = OmegaConf.to_container(config.process, resolve=True), bundle.entry("process")
    changes = {"process": process} if any(own.get(x) != process.get(x) for x in READ_BY_DENOISER) else {}
    for key in ("codec.autoencoder", "codec.text_encoder"):
        if read_at(Bundle.open(OmegaConf.select(config, key)), key) != read_at(bundle, key):
            changes[key] = str(config.init)
    for key, value in changes.items():
        if any(is_below(each.lstrip("+~").partition("=")[0], (key,)) for each in typed):
            yield f"{key} is as you typed it, not what the weights of init={bundle.path} were trained with"
        else:
            OmegaConf.update(config, key, value, merge=False)
            yield (
                f"{key} is that of init={bundle.path}, which its weights were trained with;"
                f" type {key}= for another"
            )


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
    return moved(value) if isinstance(value, str) else value


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
    both = (read_state(state)["state_dict"], stage.state_dict())
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


def flat(node: Mapping[str, Any], prefix: str = "", *, aside: frozenset[str] = ASIDE) -> dict[str, Any]:
    """Values of nested mappings by dotted key, without null ones and those that don't decide a result."""
    found = {}
    for key, value in node.items():
        if key in aside or value is None:
            continue
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.", aside=aside) if inner else {f"{prefix}{key}": value}
    return found


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
