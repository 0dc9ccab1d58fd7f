"""What a picture costs in memory: nothing, whichever measure looks at it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Both counts fill more than two blocks of rows. At half these sizes chance alone fails the test.
ROWS, DIMS, FEW, MANY = 256, 512, 1_060, 2_500
TABLE = 4 * DIMS * (MANY - FEW)  # bytes of the features that MANY pictures have more, of one side
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # larger pieces go back to the system at once: less noise


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    """By less than one side's table: what there is are the numbers of the pictures, and noise."""
    program = Path(__file__).with_name("peaks.py")
    command = [sys.executable, str(program), str(ROWS), str(DIMS), str(tmp_path), str(FEW), str(MANY)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ALLOCATOR)
    peaks = {(int(count), name): int(size) for count, name, size in map(str.split, done.stdout.splitlines())}
    growth = {name: peaks[MANY, name] - size for (count, name), size in peaks.items() if count == FEW}
    assert len(growth) == 19
    assert {name: size for name, size in growth.items() if size > 0.75 * TABLE} == {}
