"""Schedulers of diffusers against our processes and samplers, read and written.

SOLVERS pairs each class with the sampler of ours that takes the same steps from the same noise. (Classes that
work on x / alpha start from sigma / alpha times the noise, or, with leading timesteps and in ours, from
hypot(1, sigma / alpha) times it.) A rectified flow is a DPMSolverMultistepScheduler with `use_flow_sigmas`,
the only scheduler of flows that StableDiffusionPipeline can call.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ldm import UserError
from ldm.exchange import arguments
from ldm.io.fields import Fields

Config = dict[str, Any]

DIFFUSION = "ldm.diffusion"
PROCESS = f"{DIFFUSION}.process.Process"
ZERO_SNR = f"{DIFFUSION}.schedules.zero_terminal_snr"
LISTED = f"{DIFFUSION}.schedules.listed"
SCHEDULES = {
    "linear": f"{DIFFUSION}.schedules.linear",
    "scaled_linear": f"{DIFFUSION}.schedules.scaled_linear",
    "squaredcos_cap_v2": f"{DIFFUSION}.schedules.cosine",
}
COSINE = {"offset": 0.008, "max_beta": 0.999}  # for which theirs has no fields
PREDICTIONS = {
    "epsilon": f"{DIFFUSION}.predictions.Eps",
    "v_prediction": f"{DIFFUSION}.predictions.V",
    "sample": f"{DIFFUSION}.predictions.X0",
}
NOISE_TABLE = {"beta_schedule", "beta_start", "beta_end", "trained_betas"}  # fields of the noise table
TABLE_CLOCK = f"{DIFFUSION}.process.table_index"
TABLE_FIXED = {"thresholding": False, "timestep_type": "discrete"}  # the only values that ours can have
MAX_STEPS = 10_000

FLOW = f"{DIFFUSION}.schedules.rectified_flow"
FLOW_CLOCK = f"{DIFFUSION}.process.whole"
FLOW_GRID = f"{DIFFUSION}.grids.uniform"
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
# steps_offset means nothing in a flow, but StableDiffusionPipeline warns of any other value
FLOW_STEPS = {"lower_order_final": False, "euler_at_final": False, "steps_offset": 1}
PLAIN_STEPS = {  # options that change a solver's steps, at the values that leave them as ours are
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False),
    **dict.fromkeys(("use_lu_lambdas", "euler_at_final"), False),
    **{"interpolation_type": "linear", "final_sigmas_type": "zero", "variance_type": "fixed_small"},
    "predict_x0": True,
}
GUIDANCE = {"_target_": f"{DIFFUSION}.guidance.cfg", "_partial_": True, "scale": 7.5}  # their pipeline's


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A class of theirs that takes the steps of a sampler of ours."""

    kind: str  # the class
    method: str  # our sampler's name
    spacings: tuple[str, ...] = ("leading",)  # our grids on which the steps are equal
    spacing: str = "linspace"  # their default
    options: Mapping[str, Any] = field(default_factory=dict)  # the options of our sampler
    # of their config; where it has none of them, the first solver of its kind is meant
    fields: Mapping[str, Any] = field(default_factory=dict)
    betas: tuple[float, float] = (0.0001, 0.02)  # their defaults of the first and the last
    steps: int = 50  # usual number of sampling steps
    clean: bool | None = None  # default of `set_alpha_to_one`, to end at t = 0; None without that field
    rescaled: bool = False  # whether there is a field for a table that ends at zero SNR
    of_eps: bool = False  # whether the steps are equal only for networks that predict the noise
    flow: bool = False  # whether it samples rectified flows

    @property
    def target(self) -> str:
        """The `_target_` of our sampler."""
        return f"{DIFFUSION}.samplers.{self.method}"

    def node(self) -> Config:
        """The `_target_` tree of our sampler, without options that have their defaults."""
        defaults = arguments({"_target_": self.target}, target=self.target, what="the sampler")
        own = {name: value for name, value in self.options.items() if defaults[name] != value}
        return {"_target_": self.target, "_partial_": True, **own}


_table = partial(Solver, spacings=("leading", "trailing"), spacing="leading")
_unclipped = partial(_table, fields={"clip_sample": False}, rescaled=True)
_dpm = partial(Solver, kind="DPMSolverMultistepScheduler", spacings=("trailing",), steps=25, rescaled=True)
_flow = partial(_dpm, spacings=("uniform",), flow=True)
_unipc = partial(Solver, kind="UniPCMultistepScheduler", method="unipc", spacings=("trailing",), steps=25)
_karras = partial(Solver, options={"churn": None})
FIRST, SECOND, THIRD = (
    {"algorithm_type": "dpmsolver++", "solver_order": order, "final_sigmas_type": "zero"}
    for order in (1, 2, 3)
)

DDIM = _unclipped(kind="DDIMScheduler", method="ddim", options={"eta": 0.0}, clean=True)
SOLVERS = (
    DDIM,
    _unclipped(kind="DDPMScheduler", method="ddpm", steps=1000),
    # given v, PNDM mixes predictions of different timesteps
    _table(kind="PNDMScheduler", method="pndm", fields={"skip_prk_steps": True}, clean=False, of_eps=True),
    _dpm(method="dpmpp_2m", fields=SECOND),
    _dpm(method="dpmpp_2m_sde", fields=SECOND | {"algorithm_type": "sde-dpmsolver++"}, options={"eta": 1.0}),
    _dpm(method="dpmpp_3m", fields=THIRD, options={"curvature": 0.5}),
    *(_unipc(options={"order": n}, fields={"solver_order": n, "solver_type": "bh2"}) for n in (2, 3, 1)),
    _karras(kind="EulerDiscreteScheduler", method="euler"),
    _karras(kind="HeunDiscreteScheduler", method="edm", steps=25, betas=(0.00085, 0.012)),
    Solver(kind="EulerAncestralDiscreteScheduler", method="euler_ancestral", options={"eta": 1.0}),
    _flow(method="dpmpp_2m", fields=SECOND),
    _flow(method="ddim", fields=FIRST, options={"eta": 0.0}),
)
BETAS = {solver.kind: solver.betas for solver in SOLVERS}


def process_spec(fields: Fields) -> Config:
    """The `_target_` tree of our process for a scheduler's config, whatever the scheduler's class."""
    shared = {"_partial_": True, "num_steps": _count_steps(fields)}
    fields.only(FLOW_FIXED if _is_flow(fields) else TABLE_FIXED)
    if _is_flow(fields):
        prediction, clock = FLOW_PREDICTIONS["flow_prediction"], FLOW_CLOCK
        schedule: Config = {"_target_": FLOW, "_partial_": True}
        times: Config = {"_target_": f"{DIFFUSION}.process.logit_normal_timesteps", "_partial_": True}
    else:
        kind = str(fields.values.get("_class_name"))
        if kind not in BETAS and not fields.values.keys() & NOISE_TABLE:
            raise UserError(f"{fields.name}: a {kind} without betas matches none of our processes")
        prediction, clock = fields.choice("prediction_type", PREDICTIONS, "epsilon"), TABLE_CLOCK
        schedule, times = table_spec(fields), {"_target_": f"{DIFFUSION}.process.table_timesteps", **shared}
    return {
        "_target_": PROCESS,
        "schedule": schedule,
        "prediction": {"_target_": prediction},
        "network_time": {"_target_": clock, **shared},
        "times": times,
        "weight": {"_target_": f"{DIFFUSION}.predictions.unweighted", "_partial_": True},
    }


def table_spec(fields: Fields) -> Config:
    """The `_target_` tree of our noise table for a scheduler's config."""
    num_steps = _count_steps(fields)
    if fields.values.get("trained_betas") is not None:
        betas = fields.numbers("trained_betas", low=0, high=1)
        if len(betas) != num_steps:
            raise UserError(f"{fields.name}: trained_betas must have num_train_timesteps={num_steps} numbers")
        table: Config = {"_target_": LISTED, "betas": betas}
    else:
        table = {"_target_": fields.choice("beta_schedule", SCHEDULES, "linear"), "num_steps": num_steps}
        if table["_target_"] != SCHEDULES["squaredcos_cap_v2"]:
            ends = BETAS.get(str(fields.values.get("_class_name")), DDIM.betas)
            for name, default in zip(("beta_start", "beta_end"), ends, strict=True):
                table[name] = fields.number(name, default, low=0, high=1)
    return {"_target_": ZERO_SNR, "table": table} if fields.flag("rescale_betas_zero_snr") else table


def process_fields(process: Mapping[str, Any]) -> Config:
    """A scheduler's fields for a process; an option without a field is refused."""
    node = arguments(process, target=PROCESS, what="the process")
    schedule, prediction = node["schedule"], node["prediction"]
    if schedule.get("_target_") == FLOW:
        _name_of(FLOW_PREDICTIONS, prediction, "process.prediction of a rectified flow")
        return FLOW_FIXED | {"use_flow_sigmas": True, "num_train_timesteps": _clock(node, FLOW_CLOCK, "flow")}
    zero_snr = schedule.get("_target_") == ZERO_SNR
    table = schedule["table"] if zero_snr else schedule
    if table.get("_target_") == LISTED:
        fields: Config = {"trained_betas": table["betas"], "num_train_timesteps": len(table["betas"])}
    else:
        kind = _name_of(SCHEDULES, table, "process.schedule")
        options = arguments(table, target=SCHEDULES[kind], what="the schedule")
        if any(options.get(key, value) != value for key, value in COSINE.items()):
            raise UserError(f"process.schedule can't be written for diffusers, whose cosine has {COSINE}")
        fields = {"beta_schedule": kind, "num_train_timesteps": options["num_steps"], "trained_betas": None}
        fields |= {key: options[key] for key in ("beta_start", "beta_end") if key in options}
    if _clock(node, TABLE_CLOCK, "noise table") != fields["num_train_timesteps"]:
        raise UserError("process.network_time.num_steps must be its table's to be written for diffusers")
    name = _name_of(PREDICTIONS, prediction, "process.prediction")
    return {**fields, "prediction_type": name, "rescale_betas_zero_snr": zero_snr}


def sampling_spec(fields: Fields) -> Config:
    """The `_target_` tree of the sampler nearest to a scheduler: its method or DDIM, on its timesteps."""
    solver, num_steps = _solver_read(fields), _count_steps(fields)
    if solver.flow:
        shift = float(fields.number("flow_shift", 1.0, low=1e-3, high=1e3))
        grid = {"_target_": FLOW_GRID, "_partial_": True, "shift": shift, "first": 1 - 1 / num_steps}
    else:
        spacing = fields.values.get("timestep_spacing", solver.spacing)
        leading = spacing == "leading" and "leading" in solver.spacings
        name = "leading" if leading else "trailing"
        grid = {"_target_": f"{DIFFUSION}.grids.{name}", "_partial_": True, "num_steps": num_steps}
        if leading:
            grid["offset"] = 1  # StableDiffusionPipeline replaces every other steps_offset by it
        if solver.clean is not None and not fields.flag("set_alpha_to_one", solver.clean):
            grid["clean"] = False
    target, steps = f"{DIFFUSION}.samplers.Sampling", min(solver.steps, num_steps)
    return {"_target_": target, "method": solver.node(), "grid": grid, "steps": steps}


def differences(fields: Fields) -> list[str]:
    """What our steps do differently from a scheduler's: its class, or its options by name."""
    kind = fields.values.get("_class_name")
    if not _same_class(fields):
        return [f"the steps of a {kind}"]
    solver = _solver_read(fields)
    found, expected = dict(fields.values), {**PLAIN_STEPS, **solver.fields}
    expected.pop("clip_sample", None)  # ours never clips: an export writes it, an import does not mind
    if not solver.flow:
        found.setdefault("timestep_spacing", solver.spacing)
        expected["timestep_spacing"] = sampling_spec(fields)["grid"]["_target_"].rpartition(".")[2]
    different = [name for name, value in expected.items() if found.get(name) not in (None, value)]
    return [f"{name}={found[name]} of a {kind}" for name in different]


def scheduler_config(process: Mapping[str, Any], sampler: Mapping[str, Any]) -> Config:
    """The config of the scheduler that equals a process and a sampler; refuses options without a field."""
    fields, grid = process_fields(process), sampler["grid"]
    flow = "use_flow_sigmas" in fields
    solver = _solver_written(sampler["method"], flow=flow)
    if flow:
        first = 1 - 1 / fields["num_train_timesteps"]
        if grid.get("_target_") != FLOW_GRID or abs(grid.get("first", 1.0) - first) > 1e-9:
            raise UserError(f"sampler.grid of a flow must be uniform with first={first:g}, as in diffusers")
        return {**fields, **solver.fields, **FLOW_STEPS, "flow_shift": grid.get("shift", 1.0)}
    prediction, zero_snr = fields["prediction_type"], fields.pop("rescale_betas_zero_snr")
    if (solver.of_eps and prediction != "epsilon") or (zero_snr and not solver.rescaled):
        other = "zero_terminal_snr" if zero_snr else prediction
        raise UserError(
            f"sampler.method {solver.method} can't be written for diffusers with {other}, which a "
            f"{solver.kind} samples differently: use another sampler, as in +sampler=ddim"
        )
    rescaled = {"rescale_betas_zero_snr": zero_snr} if solver.rescaled else {}
    return {**_grid_fields(solver, grid), **fields, **rescaled}


def _is_flow(fields: Fields) -> bool:
    return fields.flag("use_flow_sigmas")


def _count_steps(fields: Fields) -> int:
    """The timesteps that a network was trained with."""
    return fields.whole("num_train_timesteps", 1000, high=MAX_STEPS)


def _clock(node: Mapping[str, Any], target: str, kind: str) -> int:
    """The number of timesteps of a process's clock, which must be `target`."""
    clock = node["network_time"]
    if not isinstance(clock, Mapping) or clock.get("_target_") != target:  # the default is a function
        raise UserError(f"process.network_time of a {kind} must be {target} to be written for diffusers")
    return int(clock.get("num_steps", 1000))


def _name_of(table: Mapping[str, str], node: Mapping[str, Any], what: str) -> str:
    """Their name for a target of ours."""
    for name, target in table.items():
        if node.get("_target_") == target:
            return name
    known = " or ".join(target.rpartition(".")[2] for target in table.values())
    raise UserError(f"{what} {node.get('_target_')} can't be written for diffusers, it must be {known}")


def _same_class(fields: Fields) -> list[Solver]:
    """The solvers of a scheduler's class; none for a class without a sampler of ours."""
    flow = _is_flow(fields)
    kind = FLOW_FIXED["_class_name"] if flow else fields.values.get("_class_name")
    return [solver for solver in SOLVERS if solver.kind == kind and solver.flow == flow]


def _solver_read(fields: Fields) -> Solver:
    """The first solver of the class that the config fits, else the first of the class, else DDIM."""
    if _is_flow(fields):
        fields.whole("solver_order", 2, high=2)
    same = _same_class(fields) or [replace(DDIM, clean=None)]
    values = fields.values
    fits = (s for s in same if all(values.get(name, value) == value for name, value in s.fields.items()))
    return next(fits, same[0])


def _solver_written(method: Mapping[str, Any], *, flow: bool) -> Solver:
    """The solver that a sampler of ours is written as."""
    able = [solver for solver in SOLVERS if solver.flow == flow]
    target = method.get("_target_")
    if not (same := [solver for solver in able if target == solver.target]):
        known, theirs = ", ".join(sorted({each.method for each in able})), "diffusers" + "' flows" * flow
        raise UserError(f"sampler.method {target} can't be written for {theirs}, only {known}")
    given = arguments(method, target=same[0].target, what="the sampler")
    if isinstance(given.get("churn"), Mapping) and given["churn"].get("amount") == 0:
        given["churn"] = None
    for solver in same:
        if all(given[name] == value for name, value in solver.options.items()):
            return solver
    name = next(name for name, value in same[0].options.items() if given[name] != value)
    known = ", ".join(str(solver.options[name]) for solver in same)
    raise UserError(f"sampler.method.{name}={given[name]} can't be written for diffusers, only {known}")


def _grid_fields(solver: Solver, grid: Mapping[str, Any]) -> Config:
    """The part of a scheduler's config with its class and timesteps."""
    name = str(grid.get("_target_")).rpartition(".")[2]
    even = name == "uniform" and grid.get("shift", 1.0) == grid.get("first", 1.0) == 1.0
    spacing = "trailing" if even else name
    if spacing not in solver.spacings:
        raise UserError(
            f"sampler.grid {name} can't be written for {solver.method} of diffusers, only "
            f"{' and '.join(solver.spacings)}: write +grid={solver.spacings[0]}"
        )
    if spacing == "leading" and grid.get("offset", 0) != 1:
        raise UserError("sampler.grid.offset must be 1: StableDiffusionPipeline replaces any other by 1")
    clean = grid.get("clean", True)
    if not clean and solver.clean is None:
        raise UserError(f"sampler.grid.clean=False is no field of a {solver.kind}: leave it out")
    ends = {} if solver.clean is None else {"set_alpha_to_one": clean}
    return {"_class_name": solver.kind, "timestep_spacing": spacing, "steps_offset": 1} | solver.fields | ends


STABLE_DIFFUSION_SAMPLING = sampling_spec(Fields("", {"_class_name": "PNDMScheduler", "steps_offset": 1}))
