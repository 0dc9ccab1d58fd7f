"""Facts about Ctrl-C while a training starts."""

import os
import signal
import subprocess
import sys

# a module in which Ctrl-C comes at a moment at which Python can only print a KeyboardInterrupt, and goes on
SLOW = """
import os, signal, weakref

class Lock:
    pass

def released(_):
    os.kill(os.getpid(), signal.SIGINT)

lock = Lock()
watched = weakref.ref(lock, released)
del lock
print("went on", flush=True)
"""


def run(tmp_path, *command):
    """A process in which omegaconf is SLOW."""
    (tmp_path / "omegaconf.py").write_text(SLOW)
    variables = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    return subprocess.run(
        [sys.executable, *command], env=variables, capture_output=True, text=True, check=False
    )


def test_python_alone_loses_it(tmp_path):
    done = run(tmp_path, "-c", "import omegaconf")
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_a_training_that_starts_is_ended_by_it(tmp_path):
    done = run(tmp_path, "-m", "ldm.train")
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
