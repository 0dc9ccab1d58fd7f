"""A diffusers scheduler's class and times as a sampler of ours, and back.

A class is written where it takes the steps of ours from the same noise. Those that work on x / alpha start
from sigma / alpha times the noise; ours is hypot(1, sigma / alpha) times it, and so is theirs at leading
times alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm import UserError
from ldm.exchange.arguments import arguments
from ldm.fields import Fields

DIFFUSION = "ldm.diffusion"
LEADING, TRAILING = ("leading",), ("trailing",)
CLEAN = {"DDIMScheduler": True, "PNDMScheduler": False}  # their set_alpha_to_one; all others end at t = 0
LEADING_BY_DEFAULT = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
PLAIN_STEPS = {  # options that change a solver's steps, at the values that leave them as ours are
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "euler_at_final": False,
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "predict_x0": True,
    "variance_type": "fixed_small",
}
STEPS = {
    "DDPMScheduler": 1000,
    "DPMSolverMultistepScheduler": 25,
    "HeunDiscreteScheduler": 25,
    "UniPCMultistepScheduler": 25,
}  # every other: 50


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A class of theirs that takes the steps of a sampler of ours.

    Attributes:
        kind: the class.
        method: our sampler's name.
        spacings: of the times at which it does, by the names of our grids.
        options: what ours must be called with.
        says: what its config must say; where it says nothing, the first solver of a kind is meant.
        rescaled: whether it has a field for a table that ends at zero SNR.
        of_eps: whether it does only for networks that predict the noise.
    """

    kind: str
    method: str
    spacings: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    says: Mapping[str, Any] = field(default_factory=dict)
    rescaled: bool = False
    of_eps: bool = False

    @property
    def target(self) -> str:
        """Our sampler as a `_target_`."""
        return f"{DIFFUSION}.samplers.{self.method}"

    def node(self) -> dict[str, Any]:
        """Our sampler's constructor, without what it does by itself."""
        defaults = arguments({"_target_": self.target}, target=self.target, what="the sampler")
        own = {name: value for name, value in self.options.items() if defaults[name] != value}
        return {"_target_": self.target, "_partial_": True, **own}


def _multistep(method: str, *, order: int, kind: str = "dpmsolver++", **options: Any) -> Solver:
    return Solver(
        kind="DPMSolverMultistepScheduler",
        method=method,
        spacings=TRAILING,
        options=options,
        says={"algorithm_type": kind, "solver_order": order, "final_sigmas_type": "zero"},
        rescaled=True,
    )


def _unipc(order: int) -> Solver:
    return Solver(
        kind="UniPCMultistepScheduler",
        method="unipc",
        spacings=TRAILING,
        options={"order": order},
        says={"solver_order": order, "solver_type": "bh2"},
    )


DDIM = Solver(
    kind="DDIMScheduler",
    method="ddim",
    spacings=LEADING + TRAILING,
    options={"eta": 0.0},
    says={"clip_sample": False},
    rescaled=True,
)
SOLVERS = (
    DDIM,
    Solver(
        kind="DDPMScheduler",
        method="ddpm",
        spacings=LEADING + TRAILING,
        says={"clip_sample": False},
        rescaled=True,
    ),
    Solver(
        kind="PNDMScheduler",
        method="pndm",
        spacings=LEADING + TRAILING,
        says={"skip_prk_steps": True},
        of_eps=True,  # of v it mixes those of different times
    ),
    _multistep("dpmpp_2m", order=2),
    _multistep("dpmpp_2m_sde", order=2, kind="sde-dpmsolver++", eta=1.0),
    _multistep("dpmpp_3m", order=3, curvature=0.5),
    _unipc(2),
    _unipc(3),
    _unipc(1),
    Solver(kind="EulerDiscreteScheduler", method="euler", spacings=LEADING, options={"churn": None}),
    Solver(kind="HeunDiscreteScheduler", method="edm", spacings=LEADING, options={"churn": None}),
    Solver(
        kind="EulerAncestralDiscreteScheduler",
        method="euler_ancestral",
        spacings=LEADING,
        options={"eta": 1.0},
    ),
)


def sampling_spec(fields: Fields) -> dict[str, Any]:
    """The sampler nearest to a scheduler: its method where ours has it, else DDIM; its spacing of times."""
    kind = str(fields.values.get("_class_name"))
    num_steps = fields.whole("num_train_timesteps", 1000, high=10_000)
    solver = _solver_of(fields, kind)
    return {
        "_target_": f"{DIFFUSION}.samplers.Sampling",
        "method": solver.node(),
        "grid": _grid(fields, kind, solver, num_steps=num_steps),
        "steps": min(STEPS.get(kind, 50), num_steps),
    }


def is_covered(fields: Fields) -> bool:
    """Whether the class of a scheduler has a sampler of ours, and is not read as DDIM for want of one."""
    return any(solver.kind == fields.values.get("_class_name") for solver in SOLVERS)


def differences(fields: Fields) -> list[str]:
    """What of a scheduler's steps ours do not do: its class, or its options by name."""
    kind = fields.values.get("_class_name")
    if not is_covered(fields):
        return [f"the steps of a {kind}"]
    solver = _solver_of(fields, str(kind))
    grid = _grid(fields, str(kind), solver, num_steps=1000)["_target_"].rpartition(".")[2]
    spacing = {"timestep_spacing": fields.values.get("timestep_spacing", _default_spacing(solver))}
    expected = {
        **PLAIN_STEPS,
        **{name: value for name, value in solver.says.items() if name != "clip_sample"},
    }
    told = {**fields.values, **spacing}
    expected["timestep_spacing"] = grid
    different = [name for name, value in expected.items() if told.get(name) not in (None, value)]
    return [f"{name}={told[name]} of a {kind}" for name in different]


def solver_of(method: Mapping[str, Any]) -> Solver:
    """The class that a sampler of ours is written as.

    Raises:
        UserError: there is none for the sampler, or for one of its options.
    """
    same = [solver for solver in SOLVERS if method.get("_target_") == solver.target]
    if not same:
        known = ", ".join(dict.fromkeys(solver.method for solver in SOLVERS))
        raise UserError(
            f"sampler.method {method.get('_target_')} can't be written for diffusers, only {known}"
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


def solver_fields(solver: Solver, grid: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a scheduler's config that tells its class and the times that it visits.

    Raises:
        UserError: a grid that the class has no field for.
    """
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
    if not clean and solver.kind not in CLEAN:
        raise UserError(f"sampler.grid.clean=False is no field of a {solver.kind}: leave it out")
    return {
        "_class_name": solver.kind,
        "timestep_spacing": spacing,
        "steps_offset": 1,
        **solver.says,
        **({"set_alpha_to_one": clean} if solver.kind in CLEAN else {}),
    }


def _solver_of(fields: Fields, kind: str) -> Solver:
    """The first of the class that its config fits, else the first of the class, else DDIM."""
    same = [solver for solver in SOLVERS if solver.kind == kind]
    for solver in same:
        if all(fields.values.get(name, value) == value for name, value in solver.says.items()):
            return solver
    return same[0] if same else DDIM


def _default_spacing(solver: Solver) -> str:
    """The spacing of a class of theirs whose config says none."""
    return "leading" if solver.kind in LEADING_BY_DEFAULT else "linspace"


def _grid(fields: Fields, kind: str, solver: Solver, *, num_steps: int) -> dict[str, Any]:
    spacing = fields.values.get("timestep_spacing", _default_spacing(solver))
    leading = spacing == "leading" and "leading" in solver.spacings
    grid: dict[str, Any] = {
        "_target_": f"{DIFFUSION}.grids.{'leading' if leading else 'trailing'}",
        "_partial_": True,
        "num_steps": num_steps,
    }
    if leading:
        grid["offset"] = 1  # whatever steps_offset says: StableDiffusionPipeline sets every other to it
    if kind in CLEAN and not fields.choice("set_alpha_to_one", {True: True, False: False}, CLEAN[kind]):
        grid["clean"] = False
    return grid
