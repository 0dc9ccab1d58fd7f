"""A rectified flow in diffusers: a DPMSolverMultistepScheduler with `use_flow_sigmas`, read and written.

It is the scheduler of theirs that knows flows and that StableDiffusionPipeline can call.
"""

from collections.abc import Mapping
from typing import Any

from ldm import UserError
from ldm.fields import Fields

DIFFUSION = "ldm.diffusion"
CLASS = "DPMSolverMultistepScheduler"
SCHEDULE = f"{DIFFUSION}.schedules.rectified_flow"
PREDICTION = f"{DIFFUSION}.predictions.Flow"
CLOCK = f"{DIFFUSION}.process.whole"
GRID = f"{DIFFUSION}.grids.uniform"
METHODS = {1: f"{DIFFUSION}.samplers.ddim", 2: f"{DIFFUSION}.samplers.dpmpp_2m"}  # by the solver's order
FIXED = {
    "_class_name": CLASS,
    "prediction_type": "flow_prediction",
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
}
STEPS = 25


def is_flow(fields: Fields) -> bool:
    """Whether a scheduler's config is of a rectified flow."""
    return fields.choice("use_flow_sigmas", {True: True, False: False}, False)


def process_spec(fields: Fields) -> dict[str, Any]:
    """The process of a flow's scheduler.

    Raises:
        UserError: an option that ours lacks.
    """
    fields.only(FIXED)
    num_steps = fields.whole("num_train_timesteps", 1000, high=10_000)
    return {
        "_target_": f"{DIFFUSION}.process.Process",
        "schedule": {"_target_": SCHEDULE, "_partial_": True},
        "prediction": {"_target_": PREDICTION},
        "network_time": {"_target_": CLOCK, "_partial_": True, "num_steps": num_steps},
        "times": {"_target_": f"{DIFFUSION}.densities.logit_normal", "_partial_": True},
        "weight": {"_target_": f"{DIFFUSION}.predictions.unweighted", "_partial_": True},
    }


def sampling_spec(fields: Fields) -> dict[str, Any]:
    """The sampler whose steps are those of a flow's scheduler."""
    num_steps = fields.whole("num_train_timesteps", 1000, high=10_000)
    order = fields.whole("solver_order", 2, high=max(METHODS))
    return {
        "_target_": f"{DIFFUSION}.samplers.Sampling",
        "method": {"_target_": METHODS[order], "_partial_": True},
        "grid": {
            "_target_": GRID,
            "_partial_": True,
            "shift": float(fields.number("flow_shift", 1.0, low=1e-3, high=1e3)),
            "first": 1 - 1 / num_steps,
        },
        "steps": STEPS,
    }


def scheduler_config(process: Mapping[str, Any], sampler: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler that draws as a rectified flow and a sampler of ours do.

    Raises:
        UserError: a clock, prediction, method or grid that theirs has no field for.
    """
    if process["prediction"].get("_target_") != PREDICTION:
        raise UserError("process.prediction of a rectified flow must be Flow to be written for diffusers")
    clock = process["network_time"]
    if not isinstance(clock, Mapping) or clock.get("_target_") != CLOCK:
        raise UserError(f"process.network_time of a flow must be {CLOCK} to be written for diffusers")
    num_steps = clock.get("num_steps", 1000)
    method, grid = sampler["method"], sampler["grid"]
    order = next((order for order, target in METHODS.items() if method.get("_target_") == target), None)
    if order is None or method.get("eta", 0.0) != 0:
        known = ", ".join(target.rpartition(".")[2] for target in METHODS.values())
        raise UserError(
            f"sampler.method {method.get('_target_')} can't be written for diffusers' flows, only {known}"
        )
    first = 1 - 1 / num_steps
    if grid.get("_target_") != GRID or abs(grid.get("first", 1.0) - first) > 1e-9:
        raise UserError(f"sampler.grid of a flow must be uniform with first={first:g}, as in diffusers")
    return {
        **FIXED,
        "solver_order": order,
        "use_flow_sigmas": True,
        "flow_shift": grid.get("shift", 1.0),
        "num_train_timesteps": num_steps,
        "lower_order_final": False,
        "euler_at_final": False,
        "steps_offset": 1,  # of no meaning in a flow, but StableDiffusionPipeline warns of any other
    }
