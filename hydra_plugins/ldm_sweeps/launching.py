"""What the launchers share: points from jobs, and for Hydra whether each has finished."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.ldm_sweeps.points import Point, points_of
from ldm import UserError


class PointLauncher(Launcher):
    """A launcher that gives each job a folder and a process of its own; a finished point is not run again."""

    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes the config of the multirun."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Runs the jobs; returns one result each, an error that names all for those that did not finish."""
        points = points_of(self.config, job_overrides)
        waiting = [point for point in points if not point.finished]
        words = self.run(waiting, Path(self.config.hydra.sweep.dir), total=len(points))
        return returned(points, words=words)

    @abstractmethod
    def run(self, points: Sequence[Point], folder: Path, *, total: int) -> str | None:
        """Runs points of a sweep.

        Args:
            folder: of the sweep.
            total: points of the sweep, those that have finished among them.

        Returns:
            Where a reader finds what went wrong, in words; None if the points run later and elsewhere.
        """


def returned(points: Sequence[Point], *, words: str | None) -> list[JobReturn]:
    """Hydra's result for each point; for one that did not finish, an error that names all such points.

    Args:
        words: where a reader finds what went wrong; None if the points run later and elsewhere.
    """
    unfinished = [] if words is None else [point.label for point in points if not point.finished]
    error = UserError(
        f"{len(unfinished)} of {len(points)} points did not finish: {'; '.join(unfinished)}; {words}; "
        "the same command resumes them"
    )
    return [
        JobReturn(
            overrides=point.command[1:],
            status=JobStatus.FAILED if point.label in unfinished else JobStatus.COMPLETED,
            _return_value=error if point.label in unfinished else None,
        )
        for point in points
    ]
