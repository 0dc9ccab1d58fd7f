"""What a file of weights declares about itself.

The header, noise tables and marker tensors of the file, and CompVis' config, become the fields of a scheduler
of diffusers and a few more: `latent_scale`, `size`, `text_state`, `num_heads` and `num_head_channels`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ldm import UserError
from ldm.construct import construct
from ldm.exchange.schedulers import MAX_STEPS, NOISE_TABLE, table_spec
from ldm.exchange.weights import Weights
from ldm.io.fields import Fields
from ldm.io.reading import parse_json, parse_yaml, read_yaml

Entries = Iterable[tuple[str, Any, str]]  # field, value, place

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
TRUTHS = {"true": True, "1": True, "false": False, "0": False}
FLAGS = ("v_parameterization", "v_prediction", "v_pred")  # true: the network predicts v, false: noise
NAMED_V = {"architecture": "stable-diffusion-v2-768-v.*", "base_model_version": "sd_v[12]_v"}  # of a header
MARKS = {"v_pred": (PREDICTION, "v_prediction"), "ztsnr": (ZERO_SNR, True)}  # empty tensors
LEVELS = ("edm_", "sigma_min", "sigma_max")  # marks of continuous noise levels, after any prefix
COMPVIS_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
COMPVIS_DEFAULTS = {"parameterization": "eps", "beta_schedule": "linear", "timesteps": 1000}  # of its classes
HEADS = {"num_heads": "num_heads", "num_head_channels": "head_dim"}  # of CompVis' U-Net and of ours
KEPT = ("hyper_parameters", "hparams", "config")  # entries of a checkpoint
PUBLISHED = ((0.00085, 0.012), (0.0001, 0.02), (0.0015, 0.0195), (0.0015, 0.0155))  # first and last beta
ROUNDING = {torch.float16: 4e-3, torch.bfloat16: 8e-3}  # of any alpha-bar: two rounding errors
ROUNDING_FLOAT = 2e-5  # of a product of a thousand numbers in float32
ALPHA_BAR: dict[str, Callable[[Tensor], Tensor]] = {  # alpha-bar from each buffer that a checkpoint may have
    "alphas_cumprod": lambda x: x,
    "betas": lambda x: (1 - x).cumprod(0),
    "sqrt_alphas_cumprod": lambda x: x**2,
    "sqrt_one_minus_alphas_cumprod": lambda x: 1 - x**2,
    "log_one_minus_alphas_cumprod": lambda x: 1 - x.exp(),
    "sqrt_recip_alphas_cumprod": lambda x: x**-2,
    "sqrt_recipm1_alphas_cumprod": lambda x: 1 / (1 + x**2),
}
WEIGHTS, YAML = (".ckpt", ".safetensors", ".pt", ".bin"), (".yaml", ".yml")  # endings


@dataclass
class Declared:
    """The fields that a file declares, each with its value and its place in the file."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, entries: Entries) -> "Declared":
        """Adds fields; refuses two places that contradict each other."""
        for name, value, place in entries:
            if name in self.values and not agree(self.values[name], value):
                raise UserError(
                    f"{self.path} contradicts itself: {name} is {self.values[name]!r} in its "
                    f"{self.places[name]}, but {value!r} in its {place}; write declared=ignore and the right "
                    "value, such as process=sd15"
                )
            self.values.setdefault(name, value)
            self.places.setdefault(name, place)
        return self

    def only(self, names: Collection[str]) -> "Declared":
        """The fields of these names."""
        kept = {name: value for name, value in self.values.items() if name in names}
        return Declared(self.path, kept, self.places)

    def phrase(self, names: Iterable[str]) -> str:
        """The declared ones of some fields as words, each with its place."""
        found = [name for name in names if name in self.values]
        return ", ".join(f"{in_words(self.values, [name])} ({self.places[name]})" for name in found)

    def refuse(self, names: Collection[str], option: str, value: object) -> NoReturn:
        """Refuses a typed option that contradicts the file."""
        raise UserError(
            f"{self.path} declares {self.phrase(names)}, but {option}= is {value}: leave {option}= out, or "
            "add declared=ignore if the file is wrong"
        )


def agree(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers to the precision of 16 bits."""
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other)):
        return abs(one - other) <= 4e-3 * abs(one)
    return bool(one == other)


def read_declared(weights: Weights, *, trusted: bool = True) -> Declared:
    """The declaration of a file about its process, latents and text encoder; empty if it is not trusted."""
    declared = Declared(weights.path)
    if trusted:
        declared.add(_header(weights)).add(_marks(weights)).add(_buffers(weights))
        for config, place in _configs(weights):
            declared.add(_compvis(config, place, weights.path))
    return declared


def is_mark(name: str) -> bool:
    """Whether a tensor is there only for its name, which declares how the model was trained."""
    return name in MARKS or name.startswith(LEVELS)


def in_words(values: Mapping[str, Any], names: Iterable[str]) -> str:
    """Some of the values, as in a=1, b=[1000 numbers]."""
    short = {n: f"[{len(values[n])} numbers]" if isinstance(values[n], list) else values[n] for n in names}
    return ", ".join(f"{name}={value}" for name, value in short.items())


def _header(weights: Weights) -> Entries:
    """Fields in a safetensors header, with or without the prefixes of modelspec and of kohya's trainers."""
    for key, text in weights.metadata.items():
        name, place = key.removeprefix("modelspec.").removeprefix("ss_"), f"header's {key}"
        sides = set(text.lower().split("x"))
        if name == "resolution" and len(sides) == 1 and (side := sides.pop()).isdecimal():
            yield "size", int(side), place
        elif name in NAMED_V and re.fullmatch(NAMED_V[name], text):
            yield PREDICTION, "v_prediction", place
        else:
            entries: dict[str, Any] = {name: text}
            if text.lstrip().startswith("{"):
                with suppress(UserError):  # a text that only looks like json
                    entries = parse_json(text, name=place)
            yield from _entries(entries, place, weights.path)


def _marks(weights: Weights) -> Entries:
    """Fields that marker tensors declare by their names."""
    for name in filter(is_mark, weights.outline):
        if name not in MARKS:
            raise UserError(
                f"{weights.path}: its tensor {name} declares EDM's noise levels, for which no process for "
                "networks like Stable Diffusion's exists here"
            )
        yield *MARKS[name], f"tensor {name}"


def _buffers(weights: Weights) -> Entries:
    """Fields in the noise tables and the latents' scale that CompVis' code saves with the weights."""
    kept = weights.load(only={*ALPHA_BAR, "scale_factor"})
    if tables := {name: kept[name] for name in ALPHA_BAR if name in kept}:
        place = f"tensor {next(iter(tables))}"
        yield from ((key, value, place) for key, value in read_tables(tables, weights.path).items())
    if "scale_factor" in kept:
        yield SCALE, float(f"{kept['scale_factor'].double().mean().item():.6g}"), "tensor scale_factor"


def _configs(weights: Weights) -> Iterator[tuple[Mapping[str, Any], str]]:
    """CompVis' configs: in a checkpoint, and in a yaml of its stem or the only one beside its weights."""
    for key in KEPT:
        value = weights.entries.get(key)
        value = parse_yaml(value, name=f"{weights.path}: {key}") if isinstance(value, str) else value
        if isinstance(value, Mapping):
            yield value, f"entry {key}"
    around = list(weights.path.parent.iterdir())
    yamls = [path for path in around if path.suffix in YAML]
    alone = len(yamls) == sum(path.suffix in WEIGHTS for path in around) == 1
    own = [weights.path.with_suffix(ending) for ending in YAML]
    for path in [path for path in (*own, *yamls * alone) if path.is_file()][:1]:
        value = read_yaml(path)
        if isinstance(value, Mapping):
            yield value, f"config {path.name}"


def _compvis(config: Mapping[str, Any], place: str, path: Path) -> Entries:
    """The fields in a config of CompVis' LatentDiffusion, or in the arguments that a checkpoint keeps."""
    model = config.get("model")
    params = (model if isinstance(model, Mapping) else config).get("params", config)
    if not isinstance(params, Mapping):
        return
    if "linear_start" in params or "unet_config" in params:
        params = COMPVIS_DEFAULTS | dict(params)
    if "beta_schedule" in params:
        kind = params["beta_schedule"]
        params = {**params, "beta_schedule": COMPVIS_SCHEDULES.get(str(kind), kind)}
    yield from _entries(params, place, path)
    unet = _within(params, "unet_config")
    heads = ((name, unet.get(name)) for name in HEADS)
    yield from ((name, value, place) for name, value in heads if isinstance(value, int) and value > 0)
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
    """The entries with known names, under diffusers' names."""
    for key, value in entries.items():
        if value is None or str(value).lower() in ("none", "null", ""):
            continue
        where = f"{path}: its {place} has {key}={value!r}"
        if key in FLAGS:
            yield PREDICTION, "v_prediction" if _choice(value, TRUTHS, where) else "epsilon", place
        elif key in ALIASES:
            yield ALIASES[key], _read(ALIASES[key], value, where), place


def _read(name: str, value: Any, where: str) -> Any:
    """A field's value by its kind; messages begin with `where`."""
    if name == "beta_schedule":
        return str(value)
    if name in (PREDICTION, ZERO_SNR):
        return _choice(value, PREDICTIONS if name == PREDICTION else TRUTHS, where)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise UserError(f"{where}, expected a number")
    return int(number) if name == STEPS else number


def _choice(value: Any, known: Mapping[str, Any], where: str) -> Any:
    if str(value).lower() not in known:
        raise UserError(f"{where}, expected one of {', '.join(known)}")
    return known[str(value).lower()]


def read_tables(found: Mapping[str, Tensor], where: Path) -> dict[str, Any]:
    """The fields of the noise table in a checkpoint's buffers, which must all contain the same one.

    A table that is none of ours becomes `trained_betas`, if it has more than 16 bits.
    """
    first = next(iter(found))
    alpha_bar, near = _alpha_bar(first, found[first], where), _rounding(found[first])
    for name, tensor in found.items():
        other, far = _alpha_bar(name, tensor, where), 2 * max(near, _rounding(tensor))
        if other.shape != alpha_bar.shape or (other - alpha_bar).abs().max() > far:
            raise UserError(
                f"{where}: its {first} and its {name} are of different noise tables: write declared=ignore "
                "and the process= that it was trained with"
            )
    distances = {(other - alpha_bar).abs().max().item(): fields for fields, other in _candidates(alpha_bar)}
    least = min(distances)
    if least <= near:
        return distances[least]
    if near > ROUNDING_FLOAT:
        raise UserError(f"{where}: its {first} is none of our tables, in 16 bits: use the file in float32")
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    exact = found["betas"].double() if "betas" in found else 1 - alpha_bar / before
    betas = [float(f"{beta:.7g}") for beta in exact.tolist()]
    return {"trained_betas": betas, "num_train_timesteps": len(betas)}


def _rounding(tensor: Tensor) -> float:
    return ROUNDING.get(tensor.dtype, ROUNDING_FLOAT)


def _alpha_bar(name: str, tensor: Tensor, where: Path) -> Tensor:
    if tensor.ndim != 1 or not 2 <= len(tensor) <= MAX_STEPS or not tensor.is_floating_point():
        raise UserError(f"{where}: {name} has the shape {tuple(tensor.shape)}, expected a noise table")
    alpha_bar = ALPHA_BAR[name](tensor.double())
    falls = (alpha_bar.diff() <= _rounding(tensor)).all()
    if not (alpha_bar.isfinite().all() and alpha_bar[-1] >= 0 and 0 < alpha_bar[0] <= 1 and falls):
        raise UserError(
            f"{where}: {name} is no noise table, which falls from 1 to 0: write declared=ignore and the "
            "process= that it was trained with"
        )
    return alpha_bar


def _candidates(alpha_bar: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Our tables with the same number of steps, each with its fields."""
    ends = [1 - alpha_bar[0].item(), 1 - (alpha_bar[-1] / alpha_bar[-2]).item()]
    rounded = [tuple(float(f"{end:.{digits}g}") for end in ends) for digits in (3, 5)]
    pairs = [pair for pair in (*PUBLISHED, *rounded) if 0 < pair[0] < pair[1] < 1]
    shapes: list[dict[str, Any]] = [{"beta_schedule": "squaredcos_cap_v2"}]
    for kind in ("scaled_linear", "linear"):
        shapes += [{"beta_schedule": kind, "beta_start": low, "beta_end": high} for low, high in pairs]
    for zero_snr in (False, True):
        for shape in shapes:
            fields = {**shape, "num_train_timesteps": len(alpha_bar), "rescale_betas_zero_snr": zero_snr}
            yield fields, construct(table_spec(Fields("", fields))).alpha_bar[1:]
