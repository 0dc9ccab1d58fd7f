"""The process of a diffusers scheduler, a noise table or a rectified flow: from its config, and back.

Checkpoints of CompVis' have no such config, but hold the table itself: `read_tables` finds which one it is.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.construct import construct
from ldm.exchange.dialects import arguments
from ldm.io.fields import Fields

Config = dict[str, Any]

DIFFUSION = "ldm.diffusion"
PROCESS = f"{DIFFUSION}.process.Process"
TABLE_INDEX = f"{DIFFUSION}.process.table_index"
ZERO_SNR = f"{DIFFUSION}.schedules.zero_terminal_snr"
LISTED = f"{DIFFUSION}.schedules.listed"
SCHEDULES = {
    "linear": f"{DIFFUSION}.schedules.linear",
    "scaled_linear": f"{DIFFUSION}.schedules.scaled_linear",
    "squaredcos_cap_v2": f"{DIFFUSION}.schedules.cosine",
}
COSINE = {"offset": 0.008, "max_beta": 0.999}  # theirs has no field for them
PREDICTIONS = {
    "epsilon": f"{DIFFUSION}.predictions.Eps",
    "v_prediction": f"{DIFFUSION}.predictions.V",
    "sample": f"{DIFFUSION}.predictions.X0",
}
BETAS = (0.0001, 0.02)  # first and last beta of a linear table, where a config omits them
BY_DEFAULT = {  # classes whose configs may omit the whole table
    **dict.fromkeys(
        ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"), BETAS
    ),
    **dict.fromkeys(("UniPCMultistepScheduler", "EulerDiscreteScheduler"), BETAS),
    "EulerAncestralDiscreteScheduler": BETAS,
    "HeunDiscreteScheduler": (0.00085, 0.012),
}
NOISE_TABLE = {
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
}  # fields that say which table it is
TABLE_FIXED = {"thresholding": False, "timestep_type": "discrete"}  # the values that ours have

FLOW = f"{DIFFUSION}.schedules.rectified_flow"
FLOW_CLOCK = f"{DIFFUSION}.process.whole"
FLOW_PREDICTIONS = {"flow_prediction": f"{DIFFUSION}.predictions.Flow"}
FLOW_FIXED = {
    "_class_name": "DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    **dict.fromkeys(("thresholding", "use_karras_sigmas", "use_exponential_sigmas"), False),
    **dict.fromkeys(("use_beta_sigmas", "use_dynamic_shifting"), False),
}

PUBLISHED = ((0.00085, 0.012), (0.0001, 0.02), (0.0015, 0.0195), (0.0015, 0.0155))  # first and last beta
ROUNDING = {torch.float16: 4e-3, torch.bfloat16: 8e-3}  # of any alpha-bar: two rounding errors
ROUNDING_FLOAT = 2e-5  # of a product of a thousand numbers in float32
MAX_STEPS = 10_000
ALPHA_BAR: dict[str, Callable[[Tensor], Tensor]] = {  # from each buffer that a checkpoint may hold
    "alphas_cumprod": lambda x: x,
    "betas": lambda x: (1 - x).cumprod(0),
    "sqrt_alphas_cumprod": lambda x: x**2,
    "sqrt_one_minus_alphas_cumprod": lambda x: 1 - x**2,
    "log_one_minus_alphas_cumprod": lambda x: 1 - x.exp(),
    "sqrt_recip_alphas_cumprod": lambda x: x**-2,
    "sqrt_recipm1_alphas_cumprod": lambda x: 1 / (1 + x**2),
}


def is_flow(fields: Fields) -> bool:
    """Whether a scheduler's config is of a rectified flow."""
    return fields.flag("use_flow_sigmas")


def count_steps(fields: Fields) -> int:
    """The timesteps that a network was trained with."""
    return fields.whole("num_train_timesteps", 1000, high=MAX_STEPS)


def process_spec(fields: Fields) -> Config:
    """The process that a scheduler's config describes, whatever the scheduler's class.

    Raises:
        UserError: a table, a prediction or an option that ours lacks.
    """
    shared = {"_partial_": True, "num_steps": count_steps(fields)}
    fields.only(FLOW_FIXED if is_flow(fields) else TABLE_FIXED)
    if is_flow(fields):
        prediction, clock = FLOW_PREDICTIONS["flow_prediction"], FLOW_CLOCK
        schedule: Config = {"_target_": FLOW, "_partial_": True}
        times: Config = {"_target_": f"{DIFFUSION}.densities.logit_normal", "_partial_": True}
    else:
        kind = str(fields.values.get("_class_name"))
        if kind not in BY_DEFAULT and not fields.values.keys() & NOISE_TABLE:
            raise UserError(f"{fields.name}: a {kind} without betas is of none of our processes")
        prediction, clock = fields.choice("prediction_type", PREDICTIONS, "epsilon"), TABLE_INDEX
        schedule, times = table_spec(fields), {"_target_": f"{DIFFUSION}.densities.table_entries", **shared}
    return {
        "_target_": PROCESS,
        "schedule": schedule,
        "prediction": {"_target_": prediction},
        "network_time": {"_target_": clock, **shared},
        "times": times,
        "weight": {"_target_": f"{DIFFUSION}.predictions.unweighted", "_partial_": True},
    }


def table_spec(fields: Fields) -> Config:
    """The noise table of a scheduler's config.

    Raises:
        UserError: a table that ours lacks.
    """
    num_steps = count_steps(fields)
    if fields.values.get("trained_betas") is not None:
        betas = fields.numbers("trained_betas", low=0, high=1)
        if len(betas) != num_steps:
            raise UserError(f"{fields.name}: trained_betas must have num_train_timesteps={num_steps} numbers")
        table: Config = {"_target_": LISTED, "betas": betas}
    else:
        table = {"_target_": fields.choice("beta_schedule", SCHEDULES, "linear"), "num_steps": num_steps}
        if table["_target_"] != SCHEDULES["squaredcos_cap_v2"]:
            start, end = BY_DEFAULT.get(str(fields.values.get("_class_name")), BETAS)
            table["beta_start"] = fields.number("beta_start", start, low=0, high=1)
            table["beta_end"] = fields.number("beta_end", end, low=0, high=1)
    return {"_target_": ZERO_SNR, "table": table} if fields.flag("rescale_betas_zero_snr") else table


def process_fields(process: Mapping[str, Any]) -> Config:
    """The fields of a scheduler that say what a process with a noise table does.

    Raises:
        UserError: a schedule, clock or prediction that diffusers has no field for.
    """
    node = arguments(process, target=PROCESS, what="the process")
    schedule = node["schedule"]
    zero_snr = schedule.get("_target_") == ZERO_SNR
    table = _table_fields(schedule["table"] if zero_snr else schedule)
    if _clock(node, TABLE_INDEX) != table["num_train_timesteps"]:
        raise UserError("process.network_time.num_steps must be its table's to be written for diffusers")
    prediction = _name_of(PREDICTIONS, node["prediction"], "process.prediction")
    return {**table, "prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}


def flow_fields(process: Mapping[str, Any]) -> Config:
    """The fields of a scheduler that say what a process with a rectified flow does.

    Raises:
        UserError: a clock or prediction that diffusers has no field for.
    """
    node = arguments(process, target=PROCESS, what="the process")
    _name_of(FLOW_PREDICTIONS, node["prediction"], "process.prediction of a rectified flow")
    return {**FLOW_FIXED, "use_flow_sigmas": True, "num_train_timesteps": _clock(node, FLOW_CLOCK)}


def read_tables(buffers: Mapping[str, Tensor], where: object) -> tuple[str, Config] | None:
    """The first buffer's name, and the table that all of them are, as fields of a scheduler of diffusers.

    Args:
        buffers: of a checkpoint, by name; those that are no tables are not looked at.
        where: the file, for sentences.

    Returns:
        `beta_schedule`, `beta_start`, `beta_end`, `num_train_timesteps` and `rescale_betas_zero_snr`; with
        `trained_betas` a table that none of ours is; None where there is no buffer.

    Raises:
        UserError: numbers that are no noise table, two buffers that are of different tables, or a table that
            is not ours and has too few digits to be taken as it is.
    """
    found = {name: buffers[name] for name in ALPHA_BAR if name in buffers}
    if not found:
        return None
    first = next(iter(found))
    alpha_bar, near = _alpha_bar(first, found[first], where), _rounding(found[first])
    for name, tensor in found.items():
        other, far = _alpha_bar(name, tensor, where), 2 * max(near, _rounding(tensor))
        if other.shape != alpha_bar.shape or (other - alpha_bar).abs().max() > far:
            raise UserError(
                f"{where}: its {first} and its {name} are of different noise tables: write declared=ignore "
                "and process=<what it was trained with>"
            )
    distances = {(other - alpha_bar).abs().max().item(): fields for fields, other in _candidates(alpha_bar)}
    least = min(distances)
    if least <= near:
        return first, distances[least]
    if near > ROUNDING_FLOAT:
        raise UserError(f"{where}: its {first} is none of our tables, in 16 bits: take the file in float32")
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    exact = found["betas"].double() if "betas" in found else 1 - alpha_bar / before
    betas = [float(f"{beta:.7g}") for beta in exact.tolist()]
    return first, {"trained_betas": betas, "num_train_timesteps": len(betas)}


def _table_fields(node: Mapping[str, Any]) -> Config:
    if node.get("_target_") == LISTED:
        return {"trained_betas": node["betas"], "num_train_timesteps": len(node["betas"])}
    kind = _name_of(SCHEDULES, node, "process.schedule")
    table = arguments(node, target=SCHEDULES[kind], what="the schedule")
    if any(table.get(key, value) != value for key, value in COSINE.items()):
        raise UserError(f"process.schedule can't be written for diffusers: its cosine is that of {COSINE}")
    betas = {key: table[key] for key in ("beta_start", "beta_end") if key in table}
    return {"beta_schedule": kind, "num_train_timesteps": table["num_steps"], "trained_betas": None, **betas}


def _clock(node: Mapping[str, Any], target: str) -> int:
    """The timesteps that a network counts, by a clock that must be `target`."""
    clock = node["network_time"]
    if not isinstance(clock, Mapping) or clock.get("_target_") != target:  # by default a function, `scaled`
        kind = "flow" if target == FLOW_CLOCK else "noise table"
        raise UserError(f"process.network_time of a {kind} must be {target} to be written for diffusers")
    steps: int = clock.get("num_steps", 1000)
    return steps


def _name_of(table: Mapping[str, str], node: Mapping[str, Any], what: str) -> str:
    """Their name for a target of ours."""
    for name, target in table.items():
        if node.get("_target_") == target:
            return name
    known = " or ".join(target.rpartition(".")[2] for target in table.values())
    raise UserError(f"{what} {node.get('_target_')} can't be written for diffusers, it must be {known}")


def _rounding(tensor: Tensor) -> float:
    return ROUNDING.get(tensor.dtype, ROUNDING_FLOAT)


def _alpha_bar(name: str, tensor: Tensor, where: object) -> Tensor:
    if tensor.ndim != 1 or not 2 <= len(tensor) <= MAX_STEPS or not tensor.is_floating_point():
        raise UserError(f"{where}: {name} has the shape {tuple(tensor.shape)}, expected a noise table")
    alpha_bar = ALPHA_BAR[name](tensor.double())
    falls = (alpha_bar.diff() <= _rounding(tensor)).all()
    if not (alpha_bar.isfinite().all() and alpha_bar[-1] >= 0 and 0 < alpha_bar[0] <= 1 and falls):
        raise UserError(
            f"{where}: {name} is no noise table, it must fall from 1 to 0: write declared=ignore and "
            "process=<what it was trained with>"
        )
    return alpha_bar


def _candidates(alpha_bar: Tensor) -> Iterator[tuple[Config, Tensor]]:
    """Tables of ours with the same number of steps, with the fields that say them."""
    ends = [1 - alpha_bar[0].item(), 1 - (alpha_bar[-1] / alpha_bar[-2]).item()]
    rounded = [tuple(float(f"{end:.{digits}g}") for end in ends) for digits in (3, 5)]
    pairs = [pair for pair in (*PUBLISHED, *rounded) if 0 < pair[0] < pair[1] < 1]
    shapes: list[Config] = [{"beta_schedule": "squaredcos_cap_v2"}]
    for kind in ("scaled_linear", "linear"):
        shapes += [{"beta_schedule": kind, "beta_start": low, "beta_end": high} for low, high in pairs]
    for zero_snr in (False, True):
        for shape in shapes:
            fields = {**shape, "num_train_timesteps": len(alpha_bar), "rescale_betas_zero_snr": zero_snr}
            yield fields, construct(table_spec(Fields("", fields))).alpha_bar[1:]
