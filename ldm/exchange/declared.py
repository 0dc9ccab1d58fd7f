"""What a file of weights says of itself, and whether the user's options contradict it.

Its header, tables and marks among its tensors, and CompVis' config are read as the fields of a scheduler of
diffusers and a few more: `latent_scale`, `size`, `text_state`, `num_heads` and `num_head_channels`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from ldm import UserError
from ldm.exchange.diffusers import Architecture
from ldm.exchange.schedulers import NOISE_TABLE, process_fields, process_spec, sampling_spec
from ldm.exchange.tables import ALPHA_BAR, read_tables
from ldm.exchange.weights import Weights
from ldm.io.fields import Fields
from ldm.io.reading import parse_json, parse_yaml, read_yaml
from ldm.tokenizers import Tokenizer

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
TRUTHS = {"true": True, "1": True, "false": False, "0": False}
FLAGS = ("v_parameterization", "v_prediction", "v_pred")  # true: it predicts v, false: noise
NAMED_V = {"architecture": "stable-diffusion-v2-768-v.*", "base_model_version": "sd_v[12]_v"}  # of a header
MARKS = {"v_pred": (PREDICTION, "v_prediction"), "ztsnr": (ZERO_SNR, True)}  # empty tensors
LEVELS = ("edm_", "sigma_min", "sigma_max")  # marks of continuous noise levels, after any prefix
COMPVIS_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
COMPVIS_DEFAULTS = {"parameterization": "eps", "beta_schedule": "linear", "timesteps": 1000}  # of its classes
HEADS = {"num_heads": "num_heads", "num_head_channels": "head_dim"}  # of CompVis' U-Net and of ours
KEPT = ("hyper_parameters", "hparams", "config")  # entries of a checkpoint
WEIGHTS, YAML = (".ckpt", ".safetensors", ".pt", ".bin"), (".yaml", ".yml")  # endings


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked of an import."""

    architecture: Architecture  # of a file with CompVis' names that does not carry its own
    tokenizer: Callable[[], Tokenizer]  # likewise
    clip: str | None = None  # open_clip's model that a file of CLIP's weights is of
    # the text encoder's state that the denoiser reads, last or penultimate; None is what the file says, else
    # what Stable Diffusion of its version does
    text_state: str | None = None
    averaged: bool = False  # whether to take the averages that a training's file holds beside the weights
    typed: Collection[str] = ()  # the options that were typed: process, latent_scale, sampler, size
    trusted: bool = True  # whether what a file says of its process and latents counts


@dataclass
class Declared:
    """Fields with their values and where each was found."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, entries: Iterable[tuple[str, Any, str]]) -> "Declared":
        """Takes (field, value, place); refuses two places that contradict each other."""
        for name, value, place in entries:
            if name in self.values and not agree(self.values[name], value):
                raise UserError(
                    f"{self.path} contradicts itself: {name} is {self.values[name]!r} by its "
                    f"{self.places[name]}, but {value!r} by its {place}; write declared=ignore and what is "
                    "right, as in process=sd15"
                )
            self.values.setdefault(name, value)
            self.places.setdefault(name, place)
        return self

    def only(self, names: Collection[str]) -> "Declared":
        """The fields of these names."""
        kept = {name: value for name, value in self.values.items() if name in names}
        return Declared(self.path, kept, self.places)

    def phrase(self, names: Iterable[str]) -> str:
        """The fields as words, each with its place."""
        told = {name: self.values[name] for name in names if name in self.values}
        short = {name: f"[{len(x)} numbers]" if isinstance(x, list) else x for name, x in told.items()}
        return ", ".join(f"{name}={value} ({self.places[name]})" for name, value in short.items())

    def compare(self, asked: Asked) -> list[str]:
        """The fields of the process that differ from the options; heads and what was typed must agree."""
        architecture, typed = asked.architecture, asked.typed
        own, scale = _fields(architecture.process), architecture.latents["scale"][0]
        different = [n for n in self.only(SCHEDULER).values if not agree(own.get(n), self.values[n])]
        if different and "process" in typed:
            self.refuse(different, "process", _words(architecture.process))
        if "latent_scale" in typed and not agree(scale, self.values.get(SCALE, scale)):
            self.refuse([SCALE], "latent_scale", scale)
        for name, ours in HEADS.items():  # of which no shape of a weight tells
            heads = architecture.backbone["transformer"].get(ours)
            if self.values.get(name, heads) != heads:
                raise UserError(
                    f"{self.path} says {self.phrase([name])}, but backbone.transformer.{ours} is {heads}: "
                    "choose the backbone= that has it"
                )
        return different

    def refuse(self, names: Collection[str], option: str, value: object) -> NoReturn:
        """Refuses an option that was typed, with both values."""
        raise UserError(
            f"{self.path} says {self.phrase(names)}, {option}= says {value}: leave {option}= out, or add "
            "declared=ignore if the file is wrong"
        )


def agree(one: Any, other: Any) -> bool:
    """Whether two values are the same, numbers to what 16 bits keep of them."""
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other)):
        return abs(one - other) <= 4e-3 * abs(one)
    return bool(one == other)


def read_declared(weights: Weights, *, trusted: bool = True) -> Declared:
    """All that a file says of its process, its latents and its text encoder; nothing if it is not trusted."""
    told = Declared(weights.path)
    if trusted:
        told.add(_header(weights)).add(_marks(weights)).add(_buffers(weights))
        for config, place in _configs(weights):
            told.add(_compvis(config, place, weights.path))
    return told


def settled(told: Declared, asked: Asked) -> tuple[Architecture, list[str]]:
    """The architecture that was asked for as a file's own word has it, and a sentence on what it changed."""
    architecture, typed = asked.architecture, asked.typed
    own = _fields(architecture.process)
    if told.values.get(ZERO_SNR) and (own | told.values).get(PREDICTION) == "epsilon":
        if PREDICTION in told.values:
            raise UserError(
                f"{told.path} contradicts itself: {told.phrase([PREDICTION, ZERO_SNR])}: at pure noise a "
                "prediction of it says nothing; write declared=ignore and process=sd15 or process=zero_snr"
            )
        told.add([(PREDICTION, "v_prediction", f"{told.places[ZERO_SNR]}, which rules out noise")])
    changed = told.compare(asked)
    process, sampler = architecture.process, architecture.sampler
    if changed:
        fields = own | told.only(SCHEDULER).values
        process = process_spec(Fields(str(told.path), fields))
        # DDIM, from pure noise where the table ends there: PNDM of Stable Diffusion 1.x is for noise alone
        spacing = {"timestep_spacing": "trailing"} if fields.get(ZERO_SNR) else {"set_alpha_to_one": False}
        ddim = sampling_spec(Fields("", {"_class_name": "DDIMScheduler", **spacing}))
        sampler = sampler if "sampler" in typed else ddim
    latents, size = dict(architecture.latents), architecture.size
    scale = told.values.get(SCALE, latents["scale"][0])
    if not agree(latents["scale"][0], scale):
        latents["scale"], changed = [scale] * len(latents["scale"]), [*changed, SCALE]
    if "size" not in typed and told.values.get("size", size) != size:
        size, changed = told.values["size"], [*changed, "size"]
    notes = [f"{told.path.name} says {told.phrase(changed)}: taken from there"] if changed else []
    return replace(architecture, process=process, sampler=sampler, latents=latents, size=size), notes


def chosen(settings: Mapping[str, Any], asked: Asked, where: Path) -> dict[str, Any]:
    """The settings of a folder or a header with the options that were typed; a trusted one must agree."""
    told, process, latents = Declared(where), settings.get("process"), settings.get("latents")
    taken = {"sampler": ("sampler", asked.architecture.sampler)}
    if not asked.trusted:
        taken["process"] = ("process", asked.architecture.process)
        taken["latent_scale"] = ("latents", dict(asked.architecture.latents))
    elif process and "process" in asked.typed:
        told.add((*each, "its scheduler") for each in process_fields(process).items())
    if asked.trusted and latents:
        scales = latents["scale"]
        told.add([(SCALE, scales if len(set(scales)) > 1 else scales[0], "its autoencoder")])
    told.compare(asked)
    names = [option for option, (entry, _) in taken.items() if option in asked.typed and entry in settings]
    return {**settings, **dict(taken[option] for option in names)}


def is_mark(name: str) -> bool:
    """Whether a tensor's name says how a model was trained."""
    return name in MARKS or name.startswith(LEVELS)


def _fields(process: Mapping[str, Any]) -> dict[str, Any]:
    """A process as a scheduler's fields; none where diffusers has no fields for it."""
    try:
        return process_fields(process)
    except UserError:
        return {}


def _words(process: Mapping[str, Any]) -> str:
    fields = _fields(process)
    if "beta_schedule" not in fields:
        return f"{process['prediction']['_target_'].rpartition('.')[2]} on {process['schedule']['_target_']}"
    betas = f" {fields['beta_start']:g} to {fields['beta_end']:g}" if "beta_start" in fields else ""
    ending = ", ending in pure noise" * fields[ZERO_SNR]
    return f"{fields[PREDICTION]} on {fields['beta_schedule']}{betas}{ending}"


def _header(weights: Weights) -> Entries:
    """Entries of a safetensors header, with the prefixes of modelspec and of kohya's trainers or without."""
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
    tables = {name: kept[name] for name in ALPHA_BAR if name in kept}
    if tables:
        place = f"tensor {next(iter(tables))}"
        yield from ((key, value, place) for key, value in read_tables(tables, weights.path).items())
    if "scale_factor" in kept:
        yield SCALE, float(f"{kept['scale_factor'].double().mean().item():.6g}"), "tensor scale_factor"


def _configs(weights: Weights) -> Iterator[tuple[Mapping[str, Any], str]]:
    """CompVis' configs: in a checkpoint, and in a yaml of its stem, or alone beside the only weights."""
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
    """The fields of a LatentDiffusion's config, or of the arguments that a checkpoint keeps."""
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
    told = ((name, unet.get(name)) for name in HEADS)
    yield from ((name, value, place) for name, value in told if isinstance(value, int) and value > 0)
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
            yield PREDICTION, "v_prediction" if _choice(value, TRUTHS, said) else "epsilon", place
        elif key in ALIASES:
            yield ALIASES[key], _read(ALIASES[key], value, said), place


def _read(name: str, value: Any, said: str) -> Any:
    if name == "beta_schedule":
        return str(value)
    if name in (PREDICTION, ZERO_SNR):
        return _choice(value, PREDICTIONS if name == PREDICTION else TRUTHS, said)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise UserError(f"{said}, expected a number")
    return int(number) if name == STEPS else number


def _choice(value: Any, known: Mapping[str, Any], said: str) -> Any:
    if str(value).lower() not in known:
        raise UserError(f"{said}, known are {', '.join(known)}")
    return known[str(value).lower()]
