"""What a file says of itself against the options: the file's word counts, and a typed option must agree."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from ldm import UserError
from ldm.diffusion.process import READ_BY_DENOISER
from ldm.exchange.architecture import Architecture
from ldm.exchange.declared import PREDICTION, SCALE, SCHEDULER, ZERO_SNR, Declared, agree
from ldm.exchange.dialects.processes import process_fields, process_spec
from ldm.exchange.dialects.schedulers import sampling_spec
from ldm.io.fields import Fields


def settled(
    told: Declared, architecture: Architecture, *, typed: Collection[str]
) -> tuple[Architecture, list[str]]:
    """An architecture as a file's own word has it, with a sentence on what it changed.

    Args:
        architecture: what the options say.
        typed: those of the options that the user typed.

    Raises:
        UserError: an option that was typed, or the heads of the U-Net, contradict the file.
    """
    process, changed = _process(told, architecture.process, typed=typed)
    sampler = architecture.sampler if not changed or "sampler" in typed else _sampler(process)
    latents, size = dict(architecture.latents), architecture.size
    scale = told.values.get(SCALE, latents["scale"][0])
    if not agree(latents["scale"][0], scale):
        if "latent_scale" in typed:
            refuse_option(told, [SCALE], "latent_scale", latents["scale"][0])
        latents["scale"], changed = [scale] * len(latents["scale"]), [*changed, SCALE]
    if "size" not in typed and told.values.get("size", size) != size:
        size, changed = told.values["size"], [*changed, "size"]
    _check_heads(told, architecture.backbone["transformer"])
    notes = [f"{told.path.name} says {told.phrase(changed)}: taken from there"] if changed else []
    return replace(architecture, process=process, sampler=sampler, latents=latents, size=size), notes


def asked(
    settings: Mapping[str, Any],
    architecture: Architecture,
    *,
    typed: Collection[str],
    trusted: bool,
    where: object,
) -> dict[str, Any]:
    """A folder's or a header's settings, compared with the options that the user typed.

    Args:
        trusted: whether the files' word counts; else what was typed replaces it.
        where: the file or folder, for the sentence.

    Raises:
        UserError: a process or a scale that contradicts the files.
    """
    options = {
        "process": ("process", architecture.process),
        "latent_scale": ("latents", architecture.latents),
    }
    result = dict(settings)
    for option, (entry, value) in options.items():
        if option in typed and entry in settings and not _same(entry, settings[entry], value):
            if trusted:
                _refuse(f"{where} says {_words(entry, settings[entry])}", option, _words(entry, value))
            result[entry] = value
    if "sampler" in typed and "sampler" in settings:
        result["sampler"] = architecture.sampler
    return result


def refuse_option(told: Declared, names: Collection[str], option: str, value: object) -> NoReturn:
    """Refuses an option that was typed against what a file says, with both values."""
    _refuse(f"{told.path} says {told.phrase(names)}", option, value)


def _refuse(said: str, option: str, value: object) -> NoReturn:
    raise UserError(
        f"{said}, {option}= says {value}: leave {option}= out, or add declared=ignore if the file is wrong"
    )


def _process(
    told: Declared, process: Mapping[str, Any], *, typed: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """The process that a file says, and the names of its fields that are not as in `process`."""
    own, fields = _fields(process), told.only(SCHEDULER).values
    if fields.get(ZERO_SNR) and (own | fields).get(PREDICTION) == "epsilon":
        if PREDICTION in fields:
            raise UserError(
                f"{told.path} contradicts itself: {told.phrase([PREDICTION, ZERO_SNR])}: at pure noise a "
                "prediction of it says nothing; write declared=ignore and process=sd15 or process=zero_snr"
            )
        fields[PREDICTION] = "v_prediction"
        told.add([(PREDICTION, "v_prediction", f"{told.places[ZERO_SNR]}, which rules out noise")])
    different = [name for name, value in fields.items() if not agree(own.get(name), value)]
    if not different:
        return dict(process), []
    if "process" in typed:
        refuse_option(told, different, "process", _words("process", process))
    return process_spec(Fields(str(told.path), own | fields)), different


def _sampler(process: Mapping[str, Any]) -> dict[str, Any]:
    """DDIM, from pure noise where the table ends there; Stable Diffusion 1.x has PNDM, for noise alone."""
    zero_snr = _fields(process)[ZERO_SNR]
    spacing = {"timestep_spacing": "trailing"} if zero_snr else {"set_alpha_to_one": False}
    return sampling_spec(Fields("", {"_class_name": "DDIMScheduler", **spacing}))


def _check_heads(told: Declared, transformer: Mapping[str, Any]) -> None:
    """Refuses other heads than the file's, which no shape of a weight would tell."""
    for name, ours in (("num_heads", "num_heads"), ("num_head_channels", "head_dim")):
        own = transformer.get(ours)
        if told.values.get(name, own) != own:
            raise UserError(
                f"{told.path} says {told.phrase([name])}, but backbone.transformer.{ours} is {own}: "
                "choose the backbone= that has it"
            )


def _fields(process: Mapping[str, Any]) -> dict[str, Any]:
    """A process as a scheduler's fields; none where diffusers has no fields for it."""
    try:
        return process_fields(process)
    except UserError:
        return {}


def _same(entry: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if entry == "latents":
        return all(agree(a, b) for a, b in zip(one["scale"], other["scale"], strict=False))
    fields = _fields(one), _fields(other)
    if all(fields):
        return all(agree(fields[0].get(name), value) for name, value in fields[1].items())
    return all(one.get(name) == other.get(name) for name in READ_BY_DENOISER)


def _words(entry: str, value: Mapping[str, Any]) -> str:
    if entry == "latents":
        return f"a latent scale of {value['scale'][0]:g}"
    fields = _fields(value)
    if not fields:
        return f"{value['prediction']['_target_'].rpartition('.')[2]} on {value['schedule']['_target_']}"
    kind = "trained_betas" if fields.get("trained_betas") else fields["beta_schedule"]
    betas = f" {fields['beta_start']:g} to {fields['beta_end']:g}" if "beta_start" in fields else ""
    return f"{fields[PREDICTION]} on {kind}{betas}" + ", ending in pure noise" * fields[ZERO_SNR]
