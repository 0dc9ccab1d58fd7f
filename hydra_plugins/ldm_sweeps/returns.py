"""What launchers return to sweepers: whether each point has finished."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.ldm_sweeps.points import Point
from ldm import UserError


def returned(points: Sequence[Point], *, words: str) -> list[JobReturn]:
    """One return a point; of those that aren't finished it is an error that names them all.

    Args:
        words: where a reader finds what went wrong.
    """
    unfinished = [point.label for point in points if not point.finished]
    error = UserError(
        f"{len(unfinished)} of {len(points)} points did not finish: {'; '.join(unfinished)}; {words}; "
        "the same command resumes them"
    )
    return [_return(point, None if point.finished else error) for point in points]


def submitted(points: Sequence[Point]) -> list[JobReturn]:
    """Returns of points that run later and elsewhere."""
    return [_return(point, None) for point in points]


def _return(point: Point, error: ValueError | None) -> JobReturn:
    status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
    return JobReturn(overrides=point.command[1:], status=status, _return_value=error)
