"""Our side's pictures, as the bundle samples: `python -m benchmarks.same_hour.ours BUNDLE PROMPTS FOLDER`."""

import sys
from pathlib import Path

from benchmarks.same_hour.race import generate_listed
from ldm.checkpoints.bundle import Bundle
from ldm.generators.generator import open_generator


def main(bundle: str, prompts: str, folder: str) -> None:
    """Generates what a list names and is not there yet."""
    generate_listed(Path(prompts), Path(folder), open_generator(Bundle.open(bundle)).generator)


if __name__ == "__main__":
    main(*sys.argv[1:])
