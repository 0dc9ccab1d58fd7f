"""How many steps of a training fit into a budget of processor seconds.

    OMP_NUM_THREADS=1 python -m benchmarks.budget emoji_dalle --seconds 1600 [--steps 10 50] [key=value ...]

Runs the experiment for few steps and for more, with one validation at the end of each. The difference is what
the further steps cost; what remains of the shorter run is what starting, validating and writing the bundle
cost. A run of one step comes first and fills the caches. Processor seconds of all threads are counted, which
other work on the machine changes little, where it can double the wall time.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence


def processor_seconds(experiment: str, steps: int, overrides: Sequence[str]) -> float:
    """Seconds of user and system time that a training of so many steps takes, from its start to its end.

    Raises RuntimeError where the training fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as runs:
        settings = [f"steps={steps}", f"trainer.val_check_interval={steps}", f"runs={runs}", *overrides]
        command = [sys.executable, "-m", "ldm.train", f"+experiment={experiment}", *settings]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} has failed: {done.stderr.strip().splitlines()[-1:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str]) -> None:
    """Prints the seconds of a step, those of the rest, and the steps that fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiment", help="a name in conf/experiment")
    parser.add_argument("overrides", nargs="*", help="key=value, as for ldm.train")
    parser.add_argument("--seconds", type=float, required=True, help="budget in processor seconds")
    parser.add_argument("--steps", type=int, nargs=2, default=[10, 50], help="steps of both runs")
    options = parser.parse_intermixed_args(arguments)
    few, many = sorted(options.steps)
    _, short, long = (processor_seconds(options.experiment, n, options.overrides) for n in (1, few, many))
    step = (long - short) / (many - few)
    rest = short - few * step
    print(f"{options.experiment}: {step:.3f} s a step, {rest:.1f} s besides")
    print(f"{int((options.seconds - rest) / step)} steps in {options.seconds:g} processor seconds")


if __name__ == "__main__":
    main(sys.argv[1:])
