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
from ldm.evaluation.report import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MOST = 64  # micro-batches a step
TITLE = """# Scaling from 8 to 256 GPUs

This page is a model, not a measurement: no cluster of GPUs has run any of it. Only two ranks on two cores
were measured (`python -m benchmarks.weak_scaling`). On a GPU, `make gpu` says of each line of the model that
one GPU can measure whether it is confirmed. `python -m benchmarks.scaling_page` writes this page;
`python -m benchmarks.scaling_model --mfu 0.5` prints its tables for another speed."""
MODEL = """## The model

With `P` parameters on `N` ranks, a step takes the sum of four terms. The efficiency is the number of samples
per second and rank, divided by that of one GPU that holds everything and waits for no other.

| term | seconds |
| --- | --- |
| computing | samples x operations / (peak x share of the peak) |
| update | 36 P bytes / memory's speed; with fsdp each rank updates its share |
| waiting for links | the part of the traffic below that does not overlap with computing |
| waiting for the slowest rank | jitter x sqrt(2 ln N) x computing |

| strategy | bytes sent by each rank | when |
| --- | --- | --- |
| ddp | 2 (N-1)/N x 4 P: the all-reduce of float32 gradients | once per step, during the last backward pass |
| fsdp | 3 (N-1)/N x 4 P: weights gathered twice, gradients scattered once | for every micro-batch |

(Rajbhandari et al. 2020, sec. 7.) Messages travel along rings, at the speed of the slowest link in the ring.
Operations and parameters are counted from the networks' yaml. The model omits the text encoder, loading,
saving, and the lower speed of small batches, so it is optimistic."""
EFFICIENCY = f"""## Efficiency

By the number of GPUs, over three networks. *Stops at* is the first number of GPUs at which the efficiency is
below {FLOOR:g}. *States* is the memory for weights, gradients, moments and EMA on each of {RANKS[0]} GPUs,
without activations. Values above 1 occur because with fsdp each rank updates only its shard. A row with a dot
is a variant of the last row without one."""
ADVICE = """## Where it stops, and what to change

- **A fixed number of samples per step** (`flickr_base`: 256 in all) stops scaling first, over any network:
  every doubling of the GPUs halves the computing that overlaps with the same gradients. Take more samples per
  step and raise `optimizer.lr` with the square root of their number. Below about 64 samples per GPU, further
  GPUs bring nothing.
- **A number of samples that grows with the GPUs** scales to 256 for both networks, if every GPU has its own
  network card. With one card per node it stops at the second node: gradients then take longer to leave a node
  than to be computed. More micro-batches (`trainer.accumulate_grad_batches`) help ddp, which sends once per
  step, but the steps become larger than a training can use. Several such nodes are better used for several
  trainings (a sweep).
- **A thousand million parameters** with their states fit on a GPU of 80 GB under `trainer=ddp`, which sends a
  third less than `trainer=fsdp` and does so once per step. If they do not fit, give each rank more samples at
  a time (with `backbone.checkpointing=true`): fsdp sends all weights for every micro-batch, so many small
  ones are the worst choice.
- Over slow networks, sharding within a node and replicating between nodes helps most, and gradients in
  bfloat16. No trainer of `conf/` does either yet."""


def page(everything: list[Training]) -> str:
    """The whole page in Markdown."""
    tables = [part for name, speed in NETWORKS.items() for part in network_table(name, speed, everything)]
    return "\n\n".join([TITLE, MODEL, constants(), EFFICIENCY, *tables, *remedies(everything), ADVICE]) + "\n"


def constants() -> str:
    """The constants of the model."""
    rows = [
        ["bfloat16 operations, H100 SXM data sheet, dense", f"{PEAK / 1e12:.0f} T/s"],
        ["share of the peak that computing reaches", f"{100 * MFU:.0f} %"],
        ["memory, same data sheet", f"{HBM / 1e12:.2f} TB/s"],
        [f"NVLink 4 within {NODE} GPUs, each direction", f"{NVLINK / 1e9:.0f} GB/s"],
        *([name, f"{speed / 1e9:.1f} GB/s"] for name, speed in NETWORKS.items()),
        ["share of a link's speed that messages reach", f"{100 * REACHED:.0f} %"],
        ["latency of one hop of a ring", f"{1e6 * LATENCY:.0f} us"],
        *(
            [f"share of computing that overlaps with the messages of {name}", f"{100 * share:.0f} %"]
            for name, share in OVERLAP.items()
        ),
        ["spread of the ranks' steps, one standard deviation", f"{100 * JITTER:.0f} %"],
        ["weight, gradient, two moments and EMA in float32", f"{STATE} bytes per parameter"],
        ["read and written by an update", f"{TRAFFIC} bytes per parameter"],
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
        f"The fewest micro-batches per step with which {RANKS[-1]} GPUs reach {FLOOR:g}, and in brackets the "
        f"samples per step; - means that no number up to {MOST} suffices. fsdp sends its weights again "
        "for each micro-batch."
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
    PAGE.write_text(page(list(trainings())), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
