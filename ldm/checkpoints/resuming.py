"""The comparison of a run with the command that would resume it, and the options that `init` sets.

Options are compared by their values, paths of data sets and bundles by the contents there: a copy elsewhere
is equal, other contents under the same path are not. An option that a config lacks, because its version did
not have it, is compared by the default of the constructor that would take it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, BundleError, differing
from ldm.checkpoints.provenance import config_hash, flat
from ldm.checkpoints.training_state import read_state
from ldm.construct import arguments_of, locate, moved
from ldm.data import DataError
from ldm.data.index import FILE_NAME, ShardIndex
from ldm.diffusion.process import READ_BY_DENOISER
from ldm.distributed.ranks import world_size

SHOWN = 5  # differences that a sentence lists
FIXED = (  # a run keeps its values of these keys and of those below them
    *("backbone", "autoencoder", "text_encoder", "image_encoder", "image_tokenizer"),
    *("tokenizer", "codec", "codes", "init"),
    *("process.schedule", "process.prediction", "process.network_time"),
    *("model.stage._target_", "model.stage.net", "model.stage.clip", "model.stage.discriminator"),
    *("model.datamodule._target_", "data._target_", "optimizer._target_"),
    *("trainer.accumulate_grad_batches", "callbacks.averages.lengths"),
)
# Keys that decide nothing: a name, an option of earlier versions, and the callback of a null `target`.
NEUTRAL = ("name", "patience", "callbacks.target._target_")
FREE = ("backbone.checkpointing",)  # may change although it is below a fixed key
BUNDLES = {  # option with a bundle's path: options of the stage that read it, and the entries that these read
    "codec.autoencoder": (("codec",), ("parts.autoencoder", "latents")),
    "codec.text_encoder": (("codec", "clip"), ("parts.text_encoder", "tokenizer")),
    "model.stage.clip.bundle": (("clip",), ("parts.image_encoder",)),
    "codes.image_tokenizer": (("codes",), ("parts.image_tokenizer",)),
    "init": (
        ("initial",),
        ("parts.backbone", "process", "latents", "parts.autoencoder", "parts.text_encoder"),
    ),
}


class Difference(NamedTuple):
    """Two values of one option, None for none; a path whose contents differ has the start of their sha256."""

    old: Any
    new: Any


def contents(config: Mapping[str, Any]) -> dict[str, Any]:
    """sha256 of the data and bundles that a training reads, by option; what can't be read is left out."""
    # ranks, because no option has their number where devices are `auto` or srun starts the tasks
    found: dict[str, Any] = {"ranks": world_size()}
    stage, options = config.get("model", {}).get("stage", {}), flat(config)
    root = options.get("data.root")
    if root is not None and (Path(root) / FILE_NAME).is_file():
        with suppress(DataError):  # building the data raises it again, for the user
            found["data.root"] = ShardIndex.load(root).sha256
    for key, (readers, _) in BUNDLES.items():
        if options.get(key) is not None and not stage.keys().isdisjoint(readers):
            with suppress(BundleError, OSError):  # building the stage raises it again
                found[key] = config_hash(_read_at(Bundle.open(options[key]), key))
    return found


def _read_at(bundle: Bundle, key: str) -> dict[str, Any]:
    """The entries of a bundle that a training reads if an option of `BUNDLES` names it, by dotted key."""
    entries = flat(bundle.config, aside=())
    return {name: value for name, value in entries.items() if is_below(name, BUNDLES[key][1])}


def follow_init(config: DictConfig, typed: Sequence[str]) -> Iterator[str]:
    """Sets process and codec of a config to those of its `init` bundle; yields a line for each change.

    Weights are meaningful only with the process, the latents and the text states that they were trained with,
    whatever an experiment says. A key among the overrides that were `typed` stays, and the line says so.
    """
    if config.get("init") is None or "initial" not in config.model.stage:
        return
    bundle = Bundle.open(config.init)
    own, process = OmegaConf.to_container(config.process, resolve=True), bundle.entry("process")
    changes = {"process": process} if any(own.get(x) != process.get(x) for x in READ_BY_DENOISER) else {}
    for key in ("codec.autoencoder", "codec.text_encoder"):
        if _read_at(Bundle.open(OmegaConf.select(config, key)), key) != _read_at(bundle, key):
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
    """The options that decide the result and differ between two configs.

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
        if key in NEUTRAL or repeated or (key in read and key in reads):
            continue
        values = Difference(_value(old, was, key), _value(new, asked, key))
        if values.old != values.new:
            found[key] = values
    for key in read.keys() & reads.keys():
        if read[key] != reads[key]:
            found[key] = Difference(_content(was.get(key), read[key]), _content(asked.get(key), reads[key]))
    return found


def _value(config: Mapping[str, Any], values: Mapping[str, Any], key: str) -> Any:
    """The value of a key in a config, flat in `values`; the constructor's default of one that it lacks."""
    if key in values:  # a target of an earlier version gets its present name
        return moved(values[key]) if isinstance(values[key], str) else values[key]
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, Mapping):
            return None
        if name not in node:
            return defaults_of(node.get("_target_")).get(name)
        node = node[name]
    return None  # it is null, or a mapping where the other config has a value


def _content(path: Any, content: Any) -> Any:
    return content if path is None else f"{path} (sha256 {content[:12]})"


def replaced(found: Mapping[str, Difference], old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the configs are equal, so that only contents under the same paths differ."""
    was, asked = flat(old), flat(new)
    return bool(found) and all(was.get(key) == asked.get(key) for key in found)


def check_changes(found: Mapping[str, Difference], changes: Sequence[str], *, run: Path) -> None:
    """Refuses to resume a run with differences that are not listed in `changes`, or that no run can have."""
    if fixed := {key: each for key, each in found.items() if is_below(key, FIXED) and key not in FREE}:
        raise UserError(
            f"{run} was trained with {_in_words(fixed)}, which can't change within a run: keep that, or "
            "make a new run with resume=never"
        )
    if unlisted := {key: each for key, each in found.items() if not is_below(key, changes)}:
        raise UserError(
            f"{run} was trained with {_in_words(unlisted)}: to resume it with the new values type "
            f"'resume_changes=[{','.join(unlisted)}]', for a new run resume=never"
        )


def check_state(state: Path, stage: nn.Module) -> None:
    """Refuses a checkpoint whose weights differ in name or shape from those of the stage that resumes."""
    if state.is_dir():  # a sharded checkpoint is read after the stage has been sharded
        return
    saved, wanted = read_state(state)["state_dict"], stage.state_dict()
    if different := differing(saved, wanted):
        name = different[0]
        shapes = [tuple(each[name].shape) if name in each else None for each in (saved, wanted)]
        raise UserError(
            f"{state} is of another network: {len(different)} weights differ, such as {name} of shape "
            f"{shapes[0]} where this training has {shapes[1]}: leave the run's options as they were, or make "
            "a new run with resume=never"
        )


def _in_words(found: Mapping[str, Difference]) -> str:
    """Differences as words, at most SHOWN of them."""
    shown = {key: ["null" if value is None else value for value in each] for key, each in found.items()}
    words = [f"{key}={old} and you ask for {new}" for key, (old, new) in shown.items()]
    left = f", and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + left


def source_of(key: str, aliases: Mapping[str, str]) -> str:
    """The key whose value another one repeats, or the key itself."""
    for _ in range(len(aliases)):  # an alias may lead to another one
        if (found := next((alias for alias in aliases if is_below(key, (alias,))), None)) is None:
            break
        key = aliases[found] + key.removeprefix(found)
    return key


def is_below(key: str, keys: Sequence[str]) -> bool:
    """Whether a key is one of some keys, or lies below one."""
    return any(key == each or key.startswith(f"{each}.") for each in keys)


def defaults_of(name: object) -> dict[str, Any]:
    """The defaults of a target's arguments that are plain data, by name; empty where there is no target."""
    try:
        known = arguments_of(locate(name, allowed=("ldm.", "pytorch_lightning.", "torch.optim.")))
    except ValueError:  # a UserError of `locate`, or a function that is written in C
        return {}
    found = {key: each.default for key, each in known.parameters.items()}
    found |= {key: list(value) for key, value in found.items() if isinstance(value, tuple)}
    return {key: value for key, value in found.items() if isinstance(value, str | int | float | list)}
