"""What a file of weights declares about itself, compared with the user's options.

The header, noise tables and marker tensors of the file, and CompVis' config, become the fields of a scheduler
of diffusers and a few more: `latent_scale`, `size`, `text_state`, `num_heads` and `num_head_channels`.
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
from ldm.io.reading import Fields, parse_json, parse_yaml, read_yaml
from ldm.tokenizers import Tokenizer

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
WEIGHTS, YAML = (".ckpt", ".safetensors", ".pt", ".bin"), (".yaml", ".yml")  # endings


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The user's options of an import."""

    architecture: Architecture  # of a file with CompVis' names, unless the file has its own
    tokenizer: Callable[[], Tokenizer]  # likewise
    clip: str | None = None  # open_clip's name of the model in a file of CLIP's weights
    # the text encoder's state that the denoiser reads, last or penultimate; None is the file's declaration,
    # else what Stable Diffusion of its version reads
    text_state: str | None = None
    context_length: int | None = None  # tokens that a BERT reads of a text; None: see `import_bert`
    averaged: bool = False  # whether to read the EMA weights that a training's file holds beside the others
    typed: Collection[str] = ()  # the options that were typed: process, latent_scale, sampler, size
    trusted: bool = True  # whether the file's declaration counts


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
        return ", ".join(f"{_words(self.values, [name])} ({self.places[name]})" for name in found)

    def compare(self, asked: Asked) -> list[str]:
        """The fields of the process that differ from the options; a typed option must agree."""
        architecture, typed = asked.architecture, asked.typed
        own, scale = _fields(architecture.process), architecture.latents["scale"][0]
        different = [n for n in self.only(SCHEDULER).values if not agree(own.get(n), self.values[n])]
        if different and "process" in typed:
            words = _words(own, [name for name in different if name in own])
            self.refuse(different, "process", words or architecture.process["schedule"]["_target_"])
        if "latent_scale" in typed and not agree(scale, self.values.get(SCALE, scale)):
            self.refuse([SCALE], "latent_scale", scale)
        for name, ours in HEADS.items():  # the shapes of the weights do not depend on these
            heads = architecture.backbone["transformer"].get(ours)
            if self.values.get(name, heads) != heads:
                raise UserError(
                    f"{self.path} declares {self.phrase([name])}, but backbone.transformer.{ours} is {heads}:"
                    " choose the backbone= that has it"
                )
        return different

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


def settled(declared: Declared, asked: Asked) -> tuple[Architecture, list[str]]:
    """The user's architecture with a file's declaration in place of untyped options, and a note on it."""
    architecture, typed, values = asked.architecture, asked.typed, declared.values
    own = _fields(architecture.process)
    if values.get(ZERO_SNR) and (own | values).get(PREDICTION) == "epsilon":
        if PREDICTION in values:
            raise UserError(
                f"{declared.path} contradicts itself: {declared.phrase([PREDICTION, ZERO_SNR])}: a prediction"
                " of the noise is useless at pure noise; write declared=ignore and process=sd15 or zero_snr"
            )
        declared.add([(PREDICTION, "v_prediction", f"{declared.places[ZERO_SNR]}, which rules out noise")])
    changed = declared.compare(asked)
    process, sampler = architecture.process, architecture.sampler
    if changed:
        fields = own | declared.only(SCHEDULER).values
        process = process_spec(Fields(str(declared.path), fields))
        # DDIM, since PNDM of Stable Diffusion 1.x needs a prediction of the noise; from pure noise if the
        # noise table ends there
        spacing = {"timestep_spacing": "trailing"} if fields.get(ZERO_SNR) else {"set_alpha_to_one": False}
        ddim = sampling_spec(Fields("", {"_class_name": "DDIMScheduler", **spacing}))
        sampler = sampler if "sampler" in typed else ddim
    latents, size = dict(architecture.latents), architecture.size
    scale = values.get(SCALE, latents["scale"][0])
    if not agree(latents["scale"][0], scale):
        latents["scale"], changed = [scale] * len(latents["scale"]), [*changed, SCALE]
    if "size" not in typed and values.get("size", size) != size:
        size, changed = values["size"], [*changed, "size"]
    notes = [f"{declared.path.name} declares {declared.phrase(changed)}, which is used"] if changed else []
    return replace(architecture, process=process, sampler=sampler, latents=latents, size=size), notes


def chosen(settings: Mapping[str, Any], asked: Asked, where: Path) -> dict[str, Any]:
    """The settings of a folder or a header with the typed options, which must agree with a trusted one."""
    declared, architecture = Declared(where), asked.architecture
    process, latents = settings.get("process"), settings.get("latents")
    taken = {"sampler": ("sampler", architecture.sampler)}  # option -> entry of the settings and its value
    if not asked.trusted:
        taken["process"] = ("process", architecture.process)
        taken["latent_scale"] = ("latents", dict(architecture.latents))
    elif process and "process" in asked.typed:
        declared.add((*each, "its scheduler") for each in process_fields(process).items())
    if asked.trusted and latents:
        scales = latents["scale"]
        declared.add([(SCALE, scales if len(set(scales)) > 1 else scales[0], "its autoencoder")])
    declared.compare(asked)
    names = [option for option, (entry, _) in taken.items() if option in asked.typed and entry in settings]
    return {**settings, **dict(taken[option] for option in names)}


def is_mark(name: str) -> bool:
    """Whether a tensor is there only for its name, which declares how the model was trained."""
    return name in MARKS or name.startswith(LEVELS)


def _fields(process: Mapping[str, Any]) -> dict[str, Any]:
    """A process as a scheduler's fields; empty where diffusers has no fields for it."""
    try:
        return process_fields(process)
    except UserError:
        return {}


def _words(values: Mapping[str, Any], names: Iterable[str]) -> str:
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
