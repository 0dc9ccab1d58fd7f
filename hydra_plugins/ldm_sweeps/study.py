"""A sweeper that learns: Optuna chooses each point by what the earlier ones reached.

hydra-optuna-sweeper asks for Optuna 2; this one uses the ask-and-tell interface of the present versions.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.ldm_sweeps.points import label_of, numbers, parsed, read_points, written
from ldm import UserError
from ldm.io.writing import append
from ldm.randomness.seeds import key_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

JOURNAL = "study.jsonl"


class OptunaSweeper(Sweeper):
    """Tree-structured Parzen estimator over the keys of `params` (Bergstra et al. 2011, sec. 4).

    The study is kept in the sweep's folder, so the same command resumes it.

    Args:
        metric: what is optimised: a number that the points end with, such as val/loss.
        direction: "minimize" or "maximize".
        trials: points in all.
        batch: points at a time.
        seed: of the sampler that proposes points.
        params: what is varied, by key: `choice(a, b)`, `range(1, 9)`, `interval(0, 1)`, of whole numbers
            `int(interval(1, 9))`, by magnitude `tag(log, interval(1e-4, 1e-2))`.

    Raises UserError for fewer than one trial or batch.
    """

    def __init__(
        self,
        *,
        metric: str,
        direction: str,
        trials: int,
        batch: int,
        seed: int,
        params: Mapping[str, str] | None = None,
    ) -> None:
        for name, value in (("trials", trials), ("batch", batch)):
            if value < 1:
                raise UserError(f"hydra.sweeper.{name}={value} must be at least 1")
        self.metric, self.direction, self.seed = metric, direction, seed
        self.trials, self.batch, self.params = trials, batch, dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes the config of the multirun, and makes the launcher that it names.

        Raises UserError where Optuna is not installed.
        """
        if find_spec("optuna") is None:
            raise UserError("hydra/sweeper=optuna needs Optuna 4 or later: pip install 'ldm[sweep]'")
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float:
        """Runs what is left of the study's trials; returns the best value.

        Raises UserError where nothing varies, the launcher doesn't wait, or no trial has succeeded.
        """
        overrides = parsed([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        last = {each.get_key_element(): each for each in overrides}  # what is typed replaces `params`
        fixed = [written(each) for each in last.values() if not each.is_sweep_override()]
        space = {key: distribution(each) for key, each in last.items() if each.is_sweep_override()}
        if not space:
            raise UserError("the sweep varies nothing: give hydra.sweeper.params or key=interval(low,high)")
        if not getattr(self.launcher, "wait", True):
            raise UserError("Optuna learns from points that have ended: add hydra.launcher.wait=true")
        folder = Path(self.config.hydra.sweep.dir)
        study = open_study(
            folder, name=self.metric, direction=self.direction, seed=self.seed, batch=self.batch
        )
        while (left := self.trials - num_complete(study)) > 0:
            trials = [study.ask(space) for _ in range(min(self.batch, left))]
            if not self.run(study, trials, fixed, folder):
                break
        if not num_complete(study):
            raise UserError(f"no trial of {folder} ended with a {self.metric}: see the output of its points")
        best = f"{self.metric}={study.best_value:.6g} at {label_of(study.best_params)}"
        print(f"best of {num_complete(study)}: {best}")
        return study.best_value

    def run(self, study: "Study", trials: Sequence["Trial"], fixed: list[str], folder: Path) -> bool:
        """Runs a batch and gives the study its values; returns whether any trial succeeded."""
        from optuna.trial import TrialState

        batch = {  # by label: of trials that are alike one is run
            label_of(trial.params): [*fixed, *(f"{key}={value}" for key, value in trial.params.items())]
            for trial in trials
        }
        self.validate_batch_is_legal(list(batch.values()))
        self.launcher.launch(list(batch.values()), initial_job_idx=trials[0].number)
        points, succeeded = {point.label: point for point in read_points(folder)}, False
        for trial in trials:
            point = points[label_of(trial.params)]
            value = numbers(point).get(self.metric, math.nan) if point.finished else math.nan
            if math.isfinite(value):
                study.tell(trial, value)
                succeeded = True
            else:
                study.tell(trial, state=TrialState.FAIL)
        return succeeded


def open_study(folder: Path, *, name: str, direction: str, seed: int, batch: int) -> "Study":
    """The folder's study; trials that an earlier command left open are the next to be asked for."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    append(folder / JOURNAL, "")  # refuses a link, which the storage would follow
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        study_name=name,
        direction=direction,
        load_if_exists=True,
    )
    # a study that is opened again must not repeat its first proposals
    own = key_of(seed, "trials", len(study.trials)) % 2**32  # optuna takes no more
    study.sampler = optuna.samplers.TPESampler(seed=own, constant_liar=batch > 1)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def num_complete(study: "Study") -> int:
    """Trials that have ended with a value."""
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def distribution(override: Override) -> "BaseDistribution":
    """Optuna's form of what Hydra's grammar varies; raises UserError where it has none."""
    from optuna import distributions

    value = override.value()
    if isinstance(value, ChoiceSweep):
        return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        return distributions.CategoricalDistribution([str(number) for number in value.range()])
    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return distributions.IntDistribution(value.start, value.end, log=log)
        return distributions.FloatDistribution(float(value.start), float(value.end), log=log)
    raise UserError(
        f"{override.input_line} can't be varied: write choice(...), range(...) or interval(low, high)"
    )
