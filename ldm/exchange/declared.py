"""What a file of weights says of itself: its header, tables and marks among its tensors, CompVis' config.

All of it is brought into the fields of a scheduler of diffusers, and a few more: `latent_scale`, `size`,
`text_state`, `num_heads` and `num_head_channels`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.exchange.dialects.processes import ALPHA_BAR, NOISE_TABLE, read_tables
from ldm.exchange.weights import Weights
from ldm.io.reading import parse_json, parse_yaml, read_yaml

Entries = Iterator[tuple[str, Any, str]]  # field, value, place

PREDICTION, ZERO_SNR, SCALE = "prediction_type", "rescale_betas_zero_snr", "latent_scale"
STEPS = "num_train_timesteps"
SCHEDULER = {PREDICTION, ZERO_SNR, STEPS} | NOISE_TABLE
ALIASES = {
    **dict.fromkeys(("prediction_type", "parameterization"), PREDICTION),
    **dict.fromkeys((ZERO_SNR, "zero_terminal_snr", "ztsnr", "zsnr"), ZERO_SNR),
    **dict.fromkeys(("beta_start", "linear_start"), "beta_start"),
    **dict.fromkeys(("beta_end", "linear_end"), "beta_end"),
    **dict.fromkeys((STEPS, "timesteps"), STEPS),
    **dict.fromkeys(("scale_factor", "scaling_factor", SCALE), SCALE),
    "beta_schedule": "beta_schedule",
}
PREDICTIONS = {
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred", "vpred", "velocity"), "v_prediction"),
    **dict.fromkeys(("x0", "sample", "x_start"), "sample"),
}
FLAGS = ("v_parameterization", "v_prediction", "v_pred")  # true: it predicts v, false: noise
NAMED_V = {"architecture": "stable-diffusion-v2-768-v.*", "base_model_version": "sd_v[12]_v"}  # of a header
MARKS = {"v_pred": (PREDICTION, "v_prediction"), "ztsnr": (ZERO_SNR, True)}  # empty tensors
LEVELS = ("edm_", "sigma_min", "sigma_max")  # marks of continuous noise levels, after any prefix
COMPVIS_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
COMPVIS_DEFAULTS = {"parameterization": "eps", "beta_schedule": "linear", "timesteps": 1000}  # of its classes
KEPT = ("hyper_parameters", "hparams", "config")  # entries of a checkpoint
WEIGHTS, YAML = (".ckpt", ".safetensors", ".pt", ".bin"), (".yaml", ".yml")  # endings


@dataclass
class Declared:
    """Fields with their values and where each was found."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, entries: Iterable[tuple[str, Any, str]]) -> None:
        """Takes (field, value, place); the same field twice must have the same value.

        Raises:
            UserError: two places that contradict each other.
        """
        for name, value, place in entries:
            if name in self.values and not agree(self.values[name], value):
                raise UserError(
                    f"{self.path} contradicts itself: {name} is {self.values[name]!r} by its "
                    f"{self.places[name]}, but {value!r} by its {place}; write declared=ignore and what is "
                    "right, as in process=sd15"
                )
            self.values.setdefault(name, value)
            self.places.setdefault(name, place)

    def only(self, names: Collection[str]) -> "Declared":
        """The fields of these names."""
        kept = {name: value for name, value in self.values.items() if name in names}
        return Declared(self.path, kept, self.places)

    def phrase(self, names: Iterable[str]) -> str:
        """The fields as words, each with its place."""
        told = [name for name in names if name in self.values]
        return ", ".join(f"{name}={_short(self.values[name])} ({self.places[name]})" for name in told)


def agree(one: Any, other: Any) -> bool:
    """Whether two values are the same, numbers to what 16 bits keep of them."""
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other)):
        return abs(one - other) <= 4e-3 * abs(one)
    return bool(one == other)


def read_declared(weights: Weights) -> Declared:
    """All that a file says of its process, its latents and its text encoder.

    Raises:
        UserError: it contradicts itself, or says what none of our processes does.
    """
    told = Declared(weights.path)
    told.add(_header(weights))
    told.add(_marks(weights))
    told.add(_buffers(weights))
    for config, place in _configs(weights):
        told.add(_compvis(config, place, weights.path))
    return told


def is_mark(name: str) -> bool:
    """Whether a tensor's name says how a model was trained."""
    return name in MARKS or name.startswith(LEVELS)


def _header(weights: Weights) -> Entries:
    """Entries of a safetensors header, with the prefixes of modelspec and of kohya's trainers or without."""
    for key, text in weights.metadata.items():
        name, place = key.removeprefix("modelspec.").removeprefix("ss_"), f"header's {key}"
        sides = set(text.lower().split("x"))
        if name == "resolution" and len(sides) == 1 and (side := sides.pop()).isdecimal():
            yield "size", int(side), place
        elif name in NAMED_V and re.fullmatch(NAMED_V[name], text):
            yield PREDICTION, "v_prediction", place
        elif text.lstrip().startswith("{") and key != "ldm":
            yield from _entries(_json(text, place), place, weights.path)
        else:
            yield from _entries({name: text}, place, weights.path)


def _marks(weights: Weights) -> Entries:
    """Tensors whose names alone say something."""
    for name in filter(is_mark, weights.outline):
        if name not in MARKS:
            raise UserError(
                f"{weights.path}: its tensor {name} says that it was trained on EDM's noise levels, which no "
                "process for a network of Stable Diffusion's kind has here"
            )
        yield *MARKS[name], f"tensor {name}"


def _buffers(weights: Weights) -> Entries:
    """The noise tables and the latents' scale that CompVis keeps beside its weights."""
    kept = weights.load(only={*ALPHA_BAR, "scale_factor"})
    told = read_tables(kept, weights.path)
    if told is not None:
        yield from ((key, value, f"tensor {told[0]}") for key, value in told[1].items())
    if "scale_factor" in kept:
        yield SCALE, float(f"{kept['scale_factor'].double().mean().item():.6g}"), "tensor scale_factor"


def _configs(weights: Weights) -> Iterator[tuple[Mapping[str, Any], str]]:
    """CompVis' configs: within a checkpoint, and in a yaml beside the file."""
    for key in KEPT:
        value = weights.entries.get(key)
        value = parse_yaml(value, name=f"{weights.path}: {key}") if isinstance(value, str) else value
        if isinstance(value, Mapping):
            yield value, f"entry {key}"
    path = _yaml_beside(weights.path)
    value = read_yaml(path) if path else None
    if path and isinstance(value, Mapping):
        yield value, f"config {path.name}"


def _yaml_beside(path: Path) -> Path | None:
    """The yaml that is a file's: of the same stem, or the only one beside the only file of weights."""
    own = [file for ending in YAML if (file := path.with_suffix(ending)).is_file()]
    around = list(path.parent.iterdir())
    yamls = [each for each in around if each.suffix in YAML]
    alone = len(yamls) == sum(each.suffix in WEIGHTS for each in around) == 1
    return next(iter(own or yamls * alone), None)


def _compvis(config: Mapping[str, Any], place: str, path: Path) -> Entries:
    """The fields of a LatentDiffusion's config, or of the arguments that a checkpoint keeps."""
    model = config.get("model")
    params = (model if isinstance(model, Mapping) else config).get("params", config)
    if not isinstance(params, Mapping):
        return
    if "linear_start" in params or "unet_config" in params:
        params = COMPVIS_DEFAULTS | dict(params)
    if "beta_schedule" in params:
        kind = params["beta_schedule"]
        params = {**params, "beta_schedule": COMPVIS_SCHEDULES.get(kind, kind)}
    yield from _entries(params, place, path)
    unet = _within(params, "unet_config")
    for name in ("num_heads", "num_head_channels"):
        if isinstance(unet.get(name), int) and unet[name] > 0:
            yield name, unet[name], place
    text = _within(params, "cond_stage_config")
    if text.get("layer") in ("last", "penultimate"):
        yield "text_state", text["layer"], place
    if "unet_config" in params and isinstance(params.get("image_size"), int):
        yield "size", 8 * params["image_size"], place


def _within(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    node = params.get(name)
    inner = node.get("params") if isinstance(node, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _entries(entries: Mapping[str, Any], place: str, path: Path) -> Entries:
    """The entries whose names we know, in our words."""
    for key, value in entries.items():
        if value is None or str(value).lower() in ("none", "null", ""):
            continue
        said = f"{path}: its {place} says {key}={value!r}"
        if key in FLAGS:
            yield PREDICTION, "v_prediction" if _flag(value, said) else "epsilon", place
        elif key in ALIASES:
            yield ALIASES[key], READERS.get(ALIASES[key], _number)(value, said), place


def _prediction(value: Any, said: str) -> str:
    if str(value).lower() not in PREDICTIONS:
        raise UserError(f"{said}, known are {', '.join(PREDICTIONS)}")
    return PREDICTIONS[str(value).lower()]


def _flag(value: Any, said: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise UserError(f"{said}, expected true or false")
    return known[str(value).lower()]


def _number(value: Any, said: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise UserError(f"{said}, expected a number")
    return number


READERS: dict[str, Callable[[Any, str], Any]] = {  # of fields that are no plain numbers
    PREDICTION: _prediction,
    ZERO_SNR: _flag,
    "beta_schedule": lambda value, said: str(value),
    STEPS: lambda value, said: int(_number(value, said)),
}


def _json(text: str, place: str) -> Mapping[str, Any]:
    try:
        value = parse_json(text, name=place)
    except UserError:  # a text that only looks like json
        return {}
    return value if isinstance(value, dict) else {}


def _short(value: Any) -> str:
    return f"[{len(value)} numbers]" if isinstance(value, list) else str(value)
