"""A diffusers scheduler's class and spacing of timesteps as a sampler of ours, and back.

SOLVERS pairs each class with the method of ours that takes the same steps from the same noise. Classes that
work on x / alpha start from sigma / alpha times the noise; ours starts from hypot(1, sigma / alpha) times it,
and so does theirs with leading timesteps alone.

A rectified flow is written as a DPMSolverMultistepScheduler with `use_flow_sigmas`, the one scheduler that
knows flows and that StableDiffusionPipeline can call.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ldm import UserError
from ldm.exchange.dialects import arguments
from ldm.exchange.dialects.processes import DIFFUSION, FLOW, count_steps, flow_fields, is_flow, process_fields
from ldm.io.fields import Fields

Config = dict[str, Any]

FLOW_GRID = f"{DIFFUSION}.grids.uniform"
FLOW_STEPS = {
    "lower_order_final": False,
    "euler_at_final": False,
    "steps_offset": 1,  # of no meaning in a flow, but StableDiffusionPipeline warns of any other
}
PLAIN_STEPS = {  # options that change a solver's steps, at the values that leave them as ours are
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False),
    **dict.fromkeys(("use_lu_lambdas", "euler_at_final"), False),
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "predict_x0": True,
    "variance_type": "fixed_small",
}
GUIDANCE = {"_target_": f"{DIFFUSION}.guidance.cfg", "_partial_": True, "scale": 7.5}  # their pipeline's


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A class of theirs that takes the steps of a sampler of ours.

    Attributes:
        kind: the class.
        method: our sampler's name.
        spacings: the grids of ours on which it does.
        spacing: of a config that says none.
        options: what our sampler must be called with.
        says: what the config must say; where it says nothing, the first solver of a kind is meant.
        steps: usual number of sampling steps.
        clean: default of `set_alpha_to_one`: whether it ends at t = 0; None without that field.
        rescaled: whether it has a field for a table that ends at zero SNR.
        of_eps: whether it takes our steps only for networks that predict the noise.
        flow: whether it is one of a rectified flow.
    """

    kind: str
    method: str
    spacings: tuple[str, ...] = ("leading",)
    spacing: str = "linspace"
    options: Mapping[str, Any] = field(default_factory=dict)
    says: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 50
    clean: bool | None = None
    rescaled: bool = False
    of_eps: bool = False
    flow: bool = False

    @property
    def target(self) -> str:
        """Our sampler as a `_target_`."""
        return f"{DIFFUSION}.samplers.{self.method}"

    def node(self) -> Config:
        """Our sampler's constructor, without the options that are its defaults."""
        defaults = arguments({"_target_": self.target}, target=self.target, what="the sampler")
        own = {name: value for name, value in self.options.items() if defaults[name] != value}
        return {"_target_": self.target, "_partial_": True, **own}


def _ancestral(kind: str, method: str, **others: Any) -> Solver:
    return Solver(kind=kind, method=method, spacings=("leading", "trailing"), spacing="leading", **others)


def _multistep(method: str, order: int, algorithm: str = "dpmsolver++", **options: Any) -> Solver:
    return Solver(
        kind="DPMSolverMultistepScheduler",
        method=method,
        spacings=("trailing",),
        options=options,
        says={"algorithm_type": algorithm, "solver_order": order, "final_sigmas_type": "zero"},
        steps=25,
        rescaled=True,
    )


def _unipc(order: int) -> Solver:
    return Solver(
        kind="UniPCMultistepScheduler",
        method="unipc",
        spacings=("trailing",),
        options={"order": order},
        says={"solver_order": order, "solver_type": "bh2"},
        steps=25,
    )


DDIM = _ancestral(
    "DDIMScheduler", "ddim", options={"eta": 0.0}, says={"clip_sample": False}, clean=True, rescaled=True
)
SOLVERS = (
    DDIM,
    _ancestral("DDPMScheduler", "ddpm", says={"clip_sample": False}, steps=1000, rescaled=True),
    # of v, PNDM mixes predictions of different timesteps
    _ancestral("PNDMScheduler", "pndm", says={"skip_prk_steps": True}, clean=False, of_eps=True),
    _multistep("dpmpp_2m", 2),
    _multistep("dpmpp_2m_sde", 2, "sde-dpmsolver++", eta=1.0),
    _multistep("dpmpp_3m", 3, curvature=0.5),
    _unipc(2),
    _unipc(3),
    _unipc(1),
    Solver(kind="EulerDiscreteScheduler", method="euler", options={"churn": None}),
    Solver(kind="HeunDiscreteScheduler", method="edm", options={"churn": None}, steps=25),
    Solver(kind="EulerAncestralDiscreteScheduler", method="euler_ancestral", options={"eta": 1.0}),
    replace(_multistep("dpmpp_2m", 2), flow=True, spacings=("uniform",)),
    replace(_multistep("ddim", 1, eta=0.0), flow=True, spacings=("uniform",)),
)


def sampling_spec(fields: Fields) -> Config:
    """The sampler nearest to a scheduler: its method where ours has it, else DDIM; its spacing of timesteps.

    Raises:
        UserError: a solver of a rectified flow that ours lacks, or a number out of range.
    """
    solver, num_steps = _solver_of(fields), count_steps(fields)
    if solver.flow:
        shift = float(fields.number("flow_shift", 1.0, low=1e-3, high=1e3))
        grid = {"_target_": FLOW_GRID, "_partial_": True, "shift": shift, "first": 1 - 1 / num_steps}
    else:
        leading = "leading" in solver.spacings and _spacing(fields, solver) == "leading"
        name = "leading" if leading else "trailing"
        grid = {"_target_": f"{DIFFUSION}.grids.{name}", "_partial_": True, "num_steps": num_steps}
        if leading:
            grid["offset"] = 1  # whatever steps_offset says: StableDiffusionPipeline sets every other to it
        if solver.clean is not None and not fields.flag("set_alpha_to_one", solver.clean):
            grid["clean"] = False
    steps = min(solver.steps, num_steps)
    return {
        "_target_": f"{DIFFUSION}.samplers.Sampling",
        "method": solver.node(),
        "grid": grid,
        "steps": steps,
    }


def differences(fields: Fields) -> list[str]:
    """What of a scheduler's steps ours do not do: its class, or its options by name."""
    kind = fields.values.get("_class_name")
    if not _same_class(fields):
        return [f"the steps of a {kind}"]
    solver = _solver_of(fields)
    told, expected = dict(fields.values), {**PLAIN_STEPS, **solver.says}
    expected.pop("clip_sample", None)  # ours never clips, and says so when it is written
    if not solver.flow:
        told["timestep_spacing"] = _spacing(fields, solver)
        expected["timestep_spacing"] = sampling_spec(fields)["grid"]["_target_"].rpartition(".")[2]
    different = [name for name, value in expected.items() if told.get(name) not in (None, value)]
    return [f"{name}={told[name]} of a {kind}" for name in different]


def scheduler_config(process: Mapping[str, Any], sampler: Mapping[str, Any]) -> Config:
    """The scheduler that samples as a process and a sampler of ours do.

    Raises:
        UserError: a schedule, clock, prediction, method or grid that diffusers' pipeline has no field for.
    """
    flow = process["schedule"].get("_target_") == FLOW
    fields = flow_fields(process) if flow else process_fields(process)
    solver = _solver_for(sampler["method"], flow=flow)
    if flow:
        shift = _flow_shift(sampler["grid"], first=1 - 1 / fields["num_train_timesteps"])
        return {**fields, **solver.says, **FLOW_STEPS, "flow_shift": shift}
    prediction, zero_snr = fields["prediction_type"], fields.pop("rescale_betas_zero_snr")
    if (solver.of_eps and prediction != "epsilon") or (zero_snr and not solver.rescaled):
        other = "zero_terminal_snr" if zero_snr else prediction
        raise UserError(
            f"sampler.method {solver.method} can't be written for diffusers with {other}, which a "
            f"{solver.kind} samples otherwise: write another, as in +sampler=ddim"
        )
    rescaled = {"rescale_betas_zero_snr": zero_snr} if solver.rescaled else {}
    return {**_grid_fields(solver, sampler["grid"]), **fields, **rescaled}


def _same_class(fields: Fields) -> list[Solver]:
    """The solvers of a scheduler's class; none for a class that has no sampler of ours."""
    kind = "DPMSolverMultistepScheduler" if is_flow(fields) else fields.values.get("_class_name")
    return [each for each in SOLVERS if each.kind == kind and each.flow == is_flow(fields)]


def _solver_of(fields: Fields) -> Solver:
    """The first solver of the class that the config fits, else the first of the class, else DDIM."""
    if is_flow(fields):
        fields.whole("solver_order", 2, high=2)
    same = _same_class(fields) or [replace(DDIM, clean=None)]
    fits = [s for s in same if all(fields.values.get(name, value) == value for name, value in s.says.items())]
    return (fits or same)[0]


def _spacing(fields: Fields, solver: Solver) -> Any:
    return fields.values.get("timestep_spacing", solver.spacing)


def _solver_for(method: Mapping[str, Any], *, flow: bool) -> Solver:
    """The solver that a sampler of ours is written as.

    Raises:
        UserError: there is none for the sampler, or for one of its options.
    """
    able = [solver for solver in SOLVERS if solver.flow == flow]
    same = [solver for solver in able if method.get("_target_") == solver.target]
    if not same:
        known, theirs = ", ".join(sorted({each.method for each in able})), "diffusers" + "' flows" * flow
        raise UserError(
            f"sampler.method {method.get('_target_')} can't be written for {theirs}, only {known}"
        )
    given = arguments(method, target=same[0].target, what="the sampler")
    if isinstance(given.get("churn"), Mapping) and given["churn"].get("amount") == 0:
        given["churn"] = None
    for solver in same:
        if all(given[name] == value for name, value in solver.options.items()):
            return solver
    name = next(name for name, value in same[0].options.items() if given[name] != value)
    known = ", ".join(str(solver.options[name]) for solver in same)
    raise UserError(f"sampler.method.{name}={given[name]} can't be written for diffusers, only {known}")


def _flow_shift(grid: Mapping[str, Any], *, first: float) -> float:
    if grid.get("_target_") != FLOW_GRID or abs(grid.get("first", 1.0) - first) > 1e-9:
        raise UserError(f"sampler.grid of a flow must be uniform with first={first:g}, as in diffusers")
    return grid.get("shift", 1.0)


def _grid_fields(solver: Solver, grid: Mapping[str, Any]) -> Config:
    """The part of a scheduler's config that says its class and the timesteps that it visits."""
    name = str(grid.get("_target_")).rpartition(".")[2]
    even = name == "uniform" and grid.get("shift", 1.0) == grid.get("first", 1.0) == 1.0
    spacing = "trailing" if even else name
    if spacing not in solver.spacings:
        raise UserError(
            f"sampler.grid {name} can't be written for {solver.method} of diffusers, only "
            f"{' and '.join(solver.spacings)}: write +grid={solver.spacings[0]}"
        )
    if spacing == "leading" and grid.get("offset", 0) != 1:
        raise UserError("sampler.grid.offset must be 1: StableDiffusionPipeline sets every other to it")
    clean = grid.get("clean", True)
    if not clean and solver.clean is None:
        raise UserError(f"sampler.grid.clean=False is no field of a {solver.kind}: leave it out")
    ends = {} if solver.clean is None else {"set_alpha_to_one": clean}
    return {"_class_name": solver.kind, "timestep_spacing": spacing, "steps_offset": 1, **solver.says, **ends}


STABLE_DIFFUSION_SAMPLING = sampling_spec(Fields("", {"_class_name": "PNDMScheduler", "steps_offset": 1}))
