"""What a picture costs in memory: nothing where sums do, its features once where all pairs are looked at."""

import os
import subprocess
import sys

import pytest

DIMS, FEW, MANY = 512, 2_100, 4_300  # both counts fill more than two of the blocks that are worked on
TABLE = 4 * DIMS * 2 * (MANY - FEW)  # bytes of the features that MANY pictures on two sides have more
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # larger pieces go back to the system at once: less noise

PROGRAM = """
import re, sys
from pathlib import Path
import torch
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.kernel_distance import KernelDistance
from ldm.metrics.picture_metric import Observed
from ldm.metrics.precision_recall import PrecisionRecall
from ldm.metrics.vendi import VendiScore

count, dims = map(int, sys.argv[1:])
options = {"features": "net", "dims": dims}
streamed = [VendiScore(**options), FrechetDistance(**options)]
gathered = [KernelDistance(features="net", subset_size=None), PrecisionRecall(features="net")]
generator = torch.Generator().manual_seed(0)
for metrics in (streamed, gathered):
    for numbers in torch.arange(count).split(50):
        for real in (True, False):
            rows = torch.randn(len(numbers), dims, generator=generator)
            for metric in metrics:
                metric.update(Observed({"net": rows}, rows=numbers, captions=numbers), real=real)
    metrics[0].compute()
    print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


def peaks(count):
    """Largest memory in bytes after the streamed measures, and after the others."""
    command = [sys.executable, "-c", PROGRAM, str(count), str(DIMS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ALLOCATOR)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_by_one_copy_of_the_features_at_most():
    """Sums: by less than a quarter of the table, which is noise. All pairs: by one table for two measures,
    and less than half of it for what the allocator rounds up."""
    (streamed, gathered), (streamed_more, gathered_more) = peaks(FEW), peaks(MANY)
    assert streamed_more - streamed < TABLE / 4
    assert gathered_more - gathered < 1.5 * TABLE
