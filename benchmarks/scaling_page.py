"""The page of the scaling model: `python -m benchmarks.scaling_page` writes docs/scaling.md anew."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.scaling_model import (
    FLOOR,
    HBM,
    JITTER,
    LATENCY,
    MFU,
    NETWORKS,
    NODE,
    NVLINK,
    OVERLAP,
    PEAK,
    RANKS,
    REACHED,
    STATE,
    TRAFFIC,
    Training,
    efficiencies,
    efficiency,
    memory,
    stops_at,
    trainings,
)
from ldm.evaluation.tables import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MOST = 64  # micro-batches a step
TITLE = """# Scaling from 8 to 256 GPUs

A model, not a measurement: no cluster of GPUs has run any of this. What was measured is two ranks on two
cores (`python -m benchmarks.weak_scaling`). `python -m benchmarks.scaling_page` writes this page;
`python -m benchmarks.scaling_model --mfu 0.5` prints its tables for another speed."""
MODEL = """## The model

For `P` parameters on `N` ranks a step takes the sum of four terms. Its efficiency is samples a second
and rank, beside those of one GPU that holds everything and waits for nobody.

| term | seconds |
| --- | --- |
| computing | samples x operations / (peak x share of it) |
| update | 36 P bytes / memory's speed; with fsdp each rank updates its share |
| waiting for links | what of the traffic below computing doesn't hide |
| waiting for the slowest rank | jitter x sqrt(2 ln N) x computing |

| strategy | bytes that each rank sends | when |
| --- | --- | --- |
| ddp | 2 (N-1)/N x 4 P: the all-reduce of float32 gradients | once a step, behind the last backward pass |
| fsdp | 3 (N-1)/N x 4 P: weights gathered twice, gradients scattered once | for every micro-batch |

(Rajbhandari et al. 2020, sec. 7.) Messages go round rings, at the speed of the slowest link on them.
Operations and parameters are counted from the yaml of the networks. The text encoder, loading, saving,
and what small batches cost a GPU are left out: the model is kinder than a cluster."""
EFFICIENCY = f"""## Efficiency

By the number of GPUs, over three networks. *Stops at*: the first number at which it is below {FLOOR:g}.
*States*: weights, gradients, moments and average on each of {RANKS[0]} GPUs; activations come on top.
Above 1: with fsdp each rank updates its share alone. A row with a dot varies the one above it that has
none."""
ADVICE = """## Where it stops, and what to change

- **A step of fixed size** (`flickr_base`: 256 samples in all) stops first, over any network: every doubling
  of the GPUs halves the computing that hides the same gradients. Take more samples a step and raise
  `optimizer.lr` with the square root of their number. Where a GPU is left with fewer than some 64 of them,
  further GPUs don't pay.
- **A step that grows with the GPUs** goes on to 256, for both networks, where every GPU has a card of its
  own. With one card a node it stops at the second node: gradients then take longer to leave a node than to
  be computed. More micro-batches (`trainer.accumulate_grad_batches`) help ddp, which sends once a step, but
  the steps become larger than a training can use; runs on several such nodes are better spent on several
  trainings (a sweep).
- **A thousand million parameters** have states that fit a GPU of 80 GB under `trainer=ddp`, which sends a
  third less than `trainer=fsdp` and does so once a step. Where they don't fit, give each rank more samples
  at a time (with `backbone.checkpointing=true`): fsdp sends all weights for every micro-batch, so many
  small ones are the worst choice.
- Over slow networks most is gained by dealing weights out within a node and sending gradients in between,
  and by gradients in bfloat16. No trainer of `conf/` does either yet."""


def page() -> str:
    """All of it, in Markdown."""
    everything = list(trainings())
    tables = [part for name, speed in NETWORKS.items() for part in network_table(name, speed, everything)]
    return "\n\n".join([TITLE, MODEL, constants(), EFFICIENCY, *tables, *remedies(everything), ADVICE]) + "\n"


def constants() -> str:
    """What goes into the model beside the networks."""
    rows = [
        ["bfloat16 operations, H100 SXM data sheet, dense", f"{PEAK / 1e12:.0f} T/s"],
        ["share of them that computing reaches", f"{100 * MFU:.0f} %"],
        ["memory, same data sheet", f"{HBM / 1e12:.2f} TB/s"],
        [f"NVLink 4 within {NODE} GPUs, each direction", f"{NVLINK / 1e9:.0f} GB/s"],
        *([name, f"{speed / 1e9:.1f} GB/s"] for name, speed in NETWORKS.items()),
        ["share of a link's speed that messages reach", f"{100 * REACHED:.0f} %"],
        ["a hop of a ring", f"{1e6 * LATENCY:.0f} us"],
        *(
            [f"share of computing behind which {name} sends", f"{100 * share:.0f} %"]
            for name, share in OVERLAP.items()
        ),
        ["spread of the ranks' steps, one standard deviation", f"{100 * JITTER:.0f} %"],
        ["weight, gradient, two moments and average in float32", f"{STATE} bytes a parameter"],
        ["read and written by an update", f"{TRAFFIC} bytes a parameter"],
    ]
    return markdown_table(["what", "taken as"], rows)


def network_table(name: str, speed: float, everything: list[Training]) -> Iterator[str]:
    """Efficiency of each training by its number of GPUs, over one network."""
    yield f"### {name}"
    rows = []
    for training in everything:
        found = efficiencies(training, mfu=MFU, network=speed)
        cells = [f"{value:.2f}" for value in found.values()]
        state = f"{memory(training, RANKS[0]) / 1e9:.1f} GB"
        rows.append([label(training), *cells, stops_at(found, floor=FLOOR), state])
    yield markdown_table(["training", *map(str, RANKS), "stops at", "states"], rows)


def remedies(everything: list[Training]) -> Iterator[str]:
    """How many micro-batches a step hide what the most GPUs send, over each network."""
    yield f"## What {RANKS[-1]} GPUs need"
    yield (
        f"Micro-batches a step with which {RANKS[-1]} GPUs reach {FLOOR:g}, and the samples of such a step; "
        f"-: no number up to {MOST} does. fsdp sends its weights again for each."
    )
    growing = [training for training in everything if not training.total and training.accumulated == 1]
    rows = [
        [label(training), *(needed(training, speed) for speed in NETWORKS.values())] for training in growing
    ]
    yield markdown_table(["training", *NETWORKS], rows)


def needed(training: Training, network: float) -> str:
    """The fewest micro-batches a step with which the most GPUs keep to the floor, and its samples."""
    for accumulated in range(1, MOST + 1):
        tried = replace(training, accumulated=accumulated)
        if efficiency(tried, RANKS[-1], mfu=MFU, network=network) >= FLOOR:
            return f"{accumulated} ({accumulated * training.samples * RANKS[-1]:,})"
    return "-"


def label(training: Training) -> str:
    """Its name; what would help one is set off below it."""
    return f"· {training.name.strip()}" if training.name.startswith(" ") else training.name


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
