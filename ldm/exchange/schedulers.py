"""A diffusers scheduler's config as a process and a sampler of ours, and back.

The process of a config with a noise table is read and written here, its class and times in solvers.py, a
rectified flow in flow_schedulers.py.
"""

from collections.abc import Mapping
from typing import Any

from ldm import UserError
from ldm.exchange import flow_schedulers, solvers
from ldm.exchange.arguments import arguments
from ldm.fields import Fields

DIFFUSION = "ldm.diffusion"
PROCESS = f"{DIFFUSION}.process.Process"
ZERO_SNR = f"{DIFFUSION}.schedules.zero_terminal_snr"
TABLE_INDEX = f"{DIFFUSION}.process.table_index"
COSINE = {"offset": 0.008, "max_beta": 0.999}  # theirs has no field for them

LISTED = f"{DIFFUSION}.schedules.listed"
NOISE_TABLE = {"beta_schedule", "beta_start", "beta_end", "trained_betas"}
OF_OTHER_PROCESSES = {"thresholding": False, "timestep_type": "discrete"}  # the values that ours have

SCHEDULES = {
    "linear": f"{DIFFUSION}.schedules.linear",
    "scaled_linear": f"{DIFFUSION}.schedules.scaled_linear",
    "squaredcos_cap_v2": f"{DIFFUSION}.schedules.cosine",
}
PREDICTIONS = {
    "epsilon": f"{DIFFUSION}.predictions.Eps",
    "v_prediction": f"{DIFFUSION}.predictions.V",
    "sample": f"{DIFFUSION}.predictions.X0",
}
GUIDANCE = {
    "_target_": f"{DIFFUSION}.guidance.cfg",
    "_partial_": True,
    "scale": 7.5,
}  # StableDiffusionPipeline's


def process_spec(fields: Fields) -> dict[str, Any]:
    """The process that a scheduler's config tells of; which scheduler it is does not matter.

    Raises:
        UserError: a table, a prediction or an option that ours lacks.
    """
    if flow_schedulers.is_flow(fields):
        return flow_schedulers.process_spec(fields)
    if not fields.values.keys() & NOISE_TABLE and not solvers.is_covered(fields):
        raise UserError(
            f"{fields.name}: a {fields.values.get('_class_name')} without betas is of none of our processes"
        )
    fields.only(OF_OTHER_PROCESSES)
    num_steps = fields.whole("num_train_timesteps", 1000, high=10_000)
    shared = {"_partial_": True, "num_steps": num_steps}
    return {
        "_target_": PROCESS,
        "schedule": table_spec(fields),
        "prediction": {"_target_": fields.choice("prediction_type", PREDICTIONS, "epsilon")},
        "network_time": {"_target_": TABLE_INDEX, **shared},
        "times": {"_target_": f"{DIFFUSION}.densities.table_entries", **shared},
        "weight": {"_target_": f"{DIFFUSION}.predictions.unweighted", "_partial_": True},
    }


def table_spec(fields: Fields) -> dict[str, Any]:
    """The noise table of a scheduler's config.

    Raises:
        UserError: a table that ours lacks.
    """
    num_steps = fields.whole("num_train_timesteps", 1000, high=10_000)
    if fields.values.get("trained_betas") is not None:
        table: dict[str, Any] = {"_target_": LISTED, "betas": _trained_betas(fields, num_steps)}
    else:
        schedule = fields.choice("beta_schedule", SCHEDULES, "linear")
        table = {"_target_": schedule, "num_steps": num_steps}
        if schedule != SCHEDULES["squaredcos_cap_v2"]:
            table["beta_start"] = fields.number("beta_start", 0.0001, low=0, high=1)
            table["beta_end"] = fields.number("beta_end", 0.02, low=0, high=1)
    if fields.choice("rescale_betas_zero_snr", {True: True, False: False}, False):
        table = {"_target_": ZERO_SNR, "table": table}
    return table


def sampling_spec(fields: Fields) -> dict[str, Any]:
    """The sampler nearest to a scheduler."""
    read = flow_schedulers if flow_schedulers.is_flow(fields) else solvers
    return read.sampling_spec(fields)


STABLE_DIFFUSION_SAMPLING = sampling_spec(Fields("", {"_class_name": "PNDMScheduler", "steps_offset": 1}))


def scheduler_config(process: Mapping[str, Any], sampler: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler that draws as a process and a sampler of ours do.

    Raises:
        UserError: a schedule, clock, prediction, method or grid that diffusers' pipeline has no field for.
    """
    node = arguments(process, target=PROCESS, what="the process")
    if node["schedule"].get("_target_") == flow_schedulers.SCHEDULE:
        return flow_schedulers.scheduler_config(node, sampler)
    fields = process_fields(process)
    prediction, zero_snr = fields["prediction_type"], fields.pop("rescale_betas_zero_snr")
    solver = solvers.solver_of(sampler["method"])
    if (solver.of_eps and prediction != "epsilon") or (zero_snr and not solver.rescaled):
        other = "zero_terminal_snr" if zero_snr else prediction
        raise UserError(
            f"sampler.method {solver.method} can't be written for diffusers with {other}, which a "
            f"{solver.kind} draws otherwise: write another, as in +sampler=ddim"
        )
    return {
        **solvers.solver_fields(solver, sampler["grid"]),
        **fields,
        **({"rescale_betas_zero_snr": zero_snr} if solver.rescaled else {}),
    }


def process_fields(process: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a scheduler that say what a process with a noise table does.

    Raises:
        UserError: a schedule, clock or prediction that diffusers has no field for.
    """
    node = arguments(process, target=PROCESS, what="the process")
    schedule = node["schedule"]
    zero_snr = schedule.get("_target_") == ZERO_SNR
    fields = _table(schedule["table"] if zero_snr else schedule)
    clock = node["network_time"]
    clock = clock if isinstance(clock, Mapping) else {}  # a default: `scaled`
    if clock.get("_target_") != TABLE_INDEX or clock.get("num_steps", 1000) != fields["num_train_timesteps"]:
        raise UserError(
            f"process.network_time can't be written for diffusers, which has only {TABLE_INDEX} "
            "with the table's num_steps"
        )
    prediction = _key(PREDICTIONS, node["prediction"], "process.prediction")
    return {**fields, "prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}


def _trained_betas(fields: Fields, num_steps: int) -> list[float]:
    betas = fields.values["trained_betas"]
    if not isinstance(betas, list) or len(betas) != num_steps:
        raise UserError(f"{fields.name}: trained_betas must have num_train_timesteps={num_steps} numbers")
    return [Fields(fields.name, {"trained_betas": b}).number("trained_betas", low=0, high=1) for b in betas]


def _table(node: Mapping[str, Any]) -> dict[str, Any]:
    if node.get("_target_") == LISTED:
        return {"trained_betas": node["betas"], "num_train_timesteps": len(node["betas"])}
    kind = _key(SCHEDULES, node, "process.schedule")
    table = arguments(node, target=SCHEDULES[kind], what="the schedule")
    if any(table.get(key, value) != value for key, value in COSINE.items()):
        raise UserError(f"process.schedule can't be written for diffusers: its cosine is that of {COSINE}")
    betas = {key: table[key] for key in ("beta_start", "beta_end") if key in table}
    steps = {"num_train_timesteps": table["num_steps"], "trained_betas": None}
    return {"beta_schedule": kind, **steps, **betas}


def _key(table: Mapping[str, str], node: Mapping[str, Any], what: str) -> str:
    """Their name for a target of ours."""
    for name, target in table.items():
        if node.get("_target_") == target:
            return name
    known = ", ".join(target.rpartition(".")[2] for target in table.values())
    raise UserError(f"{what} {node.get('_target_')} can't be written for diffusers, only {known}")
