"""Ranks: starting and watching them, collective operations, and sharded weights.

What stands here loads nothing: processes that load no torch use it.
"""

import ctypes
import os
import signal
import sys

LOST = 75  # exit status of a process that ended because another one had
PR_SET_PDEATHSIG = 1  # prctl(2)


def is_rank() -> bool:
    """Whether torchrun, srun or `launch` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def follow_parent(pid: int) -> None:
    """Ends this process when its parent ends (Linux), or now if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pid:  # it died before the line above
        os._exit(LOST)
