"""The page and the figure of `experiments.onset`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ldm.evaluation.report import markdown_table
from ldm.io.pictures import save_figure

Piece = Mapping[str, Any]
HEADER = (
    "training pictures", "copied", "of them mirrored", "median d1/d2", "floor of copied", "val/loss_fixed",
    "its least, at step", "CPU s",
)  # fmt: skip
TITLE = """# The onset of copying

The same small denoiser, trained for the same number of steps on parts of the emoji, each a part of the next.
For each of 184 captions of its training set one picture is generated. A copy is less than a third as far from
one training picture as from any other, in pixels at 32 px, mirrored or not (metric `copies`; see
[numbers](../../docs/numbers.md))."""


def draw_onset(pieces: Sequence[Piece], path: Path) -> Path:
    """Share of copies and median ratio against the number of training pictures."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    shares, ratios = figure.subplots(1, 2)
    counts = [each["pictures"] for each in pieces]
    for panel, name in ((shares, "copied_pixels"), (ratios, "copy_ratio_pixels")):
        values, spread = zip(*((each[name]["value"], each[name]["sd"] or 0) for each in pieces), strict=True)
        panel.errorbar(counts, values, yerr=spread, marker="o", capsize=3, label="generated")
        floors = [each[name]["floor"] for each in pieces]
        panel.plot(counts, floors, ":", color="tab:gray", marker=".", label="other real pictures")
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, [f"{count:,}" for count in counts])
        panel.set_xlabel("training pictures")
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
    shares.set_title("share of copies (d1/d2 < 1/3)", fontsize=10)
    ratios.set_title("median d1/d2", fontsize=10)
    ratios.axhline(1 / 3, color="tab:red", linewidth=0.8)
    shares.legend(fontsize=8, frameon=False)
    return save_figure(figure, path, dpi=90)


def page(pieces: Sequence[Piece], *, figure: str) -> str:
    """The record in Markdown."""
    first = pieces[0]
    rows = [
        [
            f"{each['pictures']:,}",
            f"{each['copied_pixels']['value']:.3f} ± {each['copied_pixels']['sd'] or 0:.3f}",
            f"{each['copied_mirrored_pixels']['value']:.3f}",
            f"{each['copy_ratio_pixels']['value']:.3f}",
            f"{each['copied_pixels']['floor']:.3f}",
            *_losses(each["val/loss_fixed"]),
            f"{each['cpu_seconds']:.0f}",
        ]
        for each in pieces
    ]
    commits = {f"{each['commit'][:10]}{' with changes' if each['dirty'] else ''}" for each in pieces}
    words = [
        f"`python -m experiments.onset`, commit {', '.join(sorted(commits))}; {first['generated']} pictures",
        f"for each of {first['seeds']} sampling seeds, ± their standard deviation; one training seed each.",
        "Floor: half of the real pictures against the other half. CPU seconds: training and evaluation.",
        "Config, protocol and commands of each row are in [onset.json](onset.json).",
    ]
    image = f"![share of copies and median ratio]({figure})"
    parts = [TITLE, image, markdown_table(HEADER, rows), "\n".join(words)]
    return "\n\n".join(parts) + "\n"


def _losses(curve: Mapping[str, float]) -> list[str]:
    """The last loss, and the least with its step."""
    least = min(curve, key=lambda step: curve[step])
    return [f"{[*curve.values()][-1]:.3f}", f"{curve[least]:.3f}, {int(least):,}"]
