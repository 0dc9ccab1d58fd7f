"""A launcher that submits the points of a sweep as one array of SLURM jobs."""

import hashlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from hydra_plugins.ldm_sweeps.launching import PointLauncher
from hydra_plugins.ldm_sweeps.points import Point
from ldm import UserError
from ldm.io.writing import write

SCRIPT = Path("slurm") / "sweep.sbatch"


class SlurmLauncher(PointLauncher):
    """Points as tasks of a job array; each is requeued before its limit and resumes, as any training here.

    Args:
        options: of sbatch, as they are typed: `['--partition=gpu','--time=4:00:00']`.
        parallel: how many tasks run at once; null leaves that to SLURM.
        wait: whether to return only when the array has left the queue, as a sweeper that learns needs it.
        poll: seconds between two looks at the queue.

    Raises UserError for `parallel` or `poll` that isn't above 0.
    """

    def __init__(
        self,
        *,
        options: Sequence[str] = (),
        parallel: int | None = None,
        wait: bool = False,
        poll: float = 10.0,
    ) -> None:
        if parallel is not None and parallel < 1:
            raise UserError(f"hydra.launcher.parallel={parallel} must be at least 1, or null")
        if not poll > 0:
            raise UserError(f"hydra.launcher.poll={poll} must be above 0 seconds")
        self.options, self.parallel, self.wait, self.poll = list(options), parallel, wait, poll

    def run(self, points: Sequence[Point], folder: Path, *, total: int) -> str | None:
        """Submits the points, and waits for them if `wait` says so."""
        if points:
            job = self.submit(points, folder)
            print(f"{folder}: job {job}, an array of {len(points)} of {total} points", flush=True)
            if not self.wait:
                print(f"when it is done: python -m experiments.sweeps folder={folder}")
                return None
            while in_queue(job):
                time.sleep(self.poll)
        return f"their output is in {folder}/slurm-*.out"

    def submit(self, points: Sequence[Point], folder: Path) -> str:
        """Submits the array; returns its job id. Raises UserError where sbatch is missing or refuses."""
        text = "".join(f"{point.folder}\n" for point in points)
        digest = hashlib.sha256(text.encode()).hexdigest()
        listed = folder / f"points-{digest[:8]}.txt"  # by content: the list of a job that waits never changes
        write(listed, text)
        tasks = f"0-{len(points) - 1}" + (f"%{self.parallel}" if self.parallel else "")
        command = ["sbatch", "--parsable", f"--array={tasks}", f"--output={folder}/slurm-%A_%a.out"]
        try:
            done = subprocess.run(
                [*command, *self.options, str(SCRIPT), str(listed)],
                capture_output=True,
                text=True,
                check=True,
            )
        except FileNotFoundError:
            raise UserError("there is no sbatch here: take hydra/launcher=local, which needs none") from None
        except subprocess.CalledProcessError as error:
            raise UserError(f"sbatch refuses the sweep ({' '.join(error.stderr.split())})") from None
        return done.stdout.strip().partition(";")[0]


def in_queue(job: str) -> bool:
    """Whether any task of a job is pending or running."""
    command = ["squeue", "--noheader", f"--jobs={job}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # a controller that doesn't answer knows nothing of the job's end
        return "Invalid job id" not in done.stderr
    return bool(done.stdout.strip())
