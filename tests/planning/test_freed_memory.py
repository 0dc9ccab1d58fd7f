"""Freed memory is used again without asking the system for it."""

import subprocess
import sys

import pytest

# the share of 64 MB that the system has to clear for the second of two objects, the first of which is freed
PROGRAM = """
import resource
import sys
if sys.argv[1] == "kept":
    from ldm.planning.fitting import keep_freed_memory
    keep_freed_memory()
size = 2**26
b"x" * size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * size
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**26)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_tensor():
    share = {}
    for how in ("as usual", "kept"):
        command = [sys.executable, "-c", PROGRAM, how]
        share[how] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert share["as usual"] > 0.9
    assert share["kept"] < 0.1
