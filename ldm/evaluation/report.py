"""`report.md` and tables: the numbers of a results document for people, beside their references."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ldm.checkpoints.provenance import published

COLUMNS = ("set", "metric", "value", "floor", "ceiling", "real", "images", "NFE", "s", "params")
SWEPT = ("bundle", "sampler", "steps", "scale", "nfe", "set", "metric", "value", "floor", "ceiling")
READING = (
    "Value: mean ± standard deviation over the sampling seeds; of several trainings also that between them. "
    "Floor: real pictures against as many others, each side as many as were generated, or half of all. "
    "Ceiling: the right pictures after the autoencoder's round trip. Real: the right pictures themselves, or "
    "as many real ones where it isn't known which are right. s: to generate and look at all pictures of all "
    "seeds and trainings."
)


class Figure(NamedTuple):
    """A figure of a report."""

    title: str
    file: str  # its name, beside the report
    note: str = ""  # what is said below it

    @property
    def section(self) -> str:
        """The figure as a section in Markdown."""
        parts = (f"## {self.title}", f"![{self.title}]({self.file})", self.note)
        return "\n\n".join(part for part in parts if part)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as csv; None is empty."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are text already."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def report(document: Mapping[str, Any], *, figures: Iterable[Figure]) -> str:
    """The report of a results document in Markdown."""
    document = published(document)
    protocol, bundle, origin = document["protocol"], document["bundle"], document["provenance"]
    commit = "unknown" if origin["commit"] is None else origin["commit"][:12]
    changed = " with changes" if origin["dirty"] else ""
    skipped = sorted({metric for one in document["sets"].values() for metric in one["skipped"]})
    parts = [
        f"# Evaluation of {bundle['origin'].get('experiment', bundle['path'])}",
        f"Protocol `{protocol['name']}` ({protocol['hash'][:12]}), {bundle['kind']} {bundle['sha256'][:12]}, "
        f"commit {commit}{changed}. Compare with other rows only where the protocol's hash is the same.",
        markdown_table(COLUMNS, [measured_cells(row) for row in document["rows"]]),
        READING,
        readings_list(document["readings"]),
        f"Not measured, for want of a network or of real pictures: {', '.join(skipped)}." if skipped else "",
        *(figure.section for figure in figures),
        "## How it was measured",
        markdown_table(("what", "setting"), _settings(protocol).items()),
        markdown_table(
            ("captions", "pictures", "of the floor", "seeds", "s", "pictures/s"),
            [
                [
                    name,
                    str(one["images"]),
                    f"{one['floor_images']} against as many" if one["floor_images"] else "",
                    "-".join(map(str, one["seeds"])),
                    *_cells(one, "seconds", "images_per_second"),
                ]
                for name, one in document["sets"].items()
            ],
        ),
        f"```\n{origin['command']}\n```",
        f"{origin['seconds']} s in all, {origin['device']}, {origin['threads']} threads, peak memory "
        f"{origin['peak_memory_mb']['host']:.0f} MB, torch {origin['torch']}, "
        f"config {origin['config_hash'][:12]}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def numbers_table(rows: Sequence[Mapping[str, Any]], *, axes: Sequence[str] = ()) -> str:
    """Rows of a results document or lines of a sweep, whose axes that vary come first, for a terminal."""
    varied = [axis for axis in axes if any(row[axis] is not None for row in rows)]
    lines = [[*varied, *COLUMNS], *([*_cells(row, *varied), *measured_cells(row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def sweep_report(lines: Sequence[Mapping[str, Any]], *, figures: Iterable[Figure]) -> str:
    """The report of a sweep in Markdown: its points are measured alike and generated in different ways."""
    header = (*SWEPT, "images", "seconds")
    parts = [
        "# Sweep",
        f"Measured by the ruler {lines[0]['ruler'][:12]}; each way to generate is a protocol of its own. "
        f"Hashes are in `sweep.csv`, everything else in `point_<number>.json`.",
        markdown_table(header, [_cells({**line, "metric": _labelled(line)}, *header) for line in lines]),
        *(figure.section for figure in figures),
    ]
    return "\n\n".join(parts) + "\n"


def measured_cells(row: Mapping[str, Any]) -> list[str]:
    """A number as `COLUMNS` show it: with its spread, with a label where it can't be read like others."""
    value = _cell(row["value"]) if row["sd"] is None else f"{_cell(row['value'])} ± {row['sd']:.2g}"
    images = f"{row['images']}, {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
    if row.get("sd_trainings") is not None:
        value = f"{value}, ± {row['sd_trainings']:.2g} between trainings"
        images = f"{images}, {row['trainings']} trainings"
    params = "" if row["params"] is None else f"{row['params'] / 1e6:.1f} M"
    references, cost = _cells(row, "floor", "ceiling", "real"), _cells(row, "nfe", "seconds")
    return [row["set"], _labelled(row), value, *references, images, *cost, params]


def readings_list(readings: Mapping[str, str]) -> str:
    """A line per sentence, with all metrics that it explains."""
    metrics: dict[str, list[str]] = {}
    for name, sentence in readings.items():
        metrics.setdefault(sentence, []).append(f"`{name}`")
    return "\n".join(f"- {', '.join(names)}: {sentence}." for sentence, names in metrics.items())


def memorisation_sentence(closest: Mapping[str, Any]) -> str:
    """How many pictures of a set count as copies, by which limit, and what the figure shows."""
    copied, kept = closest["copied"], f"{1 - closest['quantile']:.0%}"
    start, end = f"{copied} of the first {closest['images']} pictures are", "the nearest come first"
    if copied == 0:
        start = f"None of the first {closest['images']} pictures is"
        end = "these are the nearest all the same"
    return (
        f"{start} nearer to a real one than a distance of {closest['limit']:.3f} in {closest['features']}, "
        f"which {kept} of the real pictures keep from each other; {end}."
    )


def _settings(protocol: Mapping[str, Any]) -> dict[str, str]:
    """The protocol in words, by what each line is about."""
    features = [
        f"{one['name']} ({one['sha256'][:12]}) at {one['size']} px, {one['resize']}, "
        f"{'' if one['rounded'] else 'not '}rounded"
        for one in protocol["features"]
    ]
    captions = [
        f"{one['name']}: {one['captions'] or 'all'} from {one['split'] or 'the pictures'}, each another "
        f"{one['unit']}, pictures of each: {one['samples']} ({one['sha256'][:12]})"
        for one in protocol["sets"]
    ]
    return {
        "features": "; ".join(features),
        "distances": "; ".join(protocol["distances"]),
        "measures": "; ".join(protocol["measures"]),
        **{"NFE" if name == "nfe" else name: _cell(protocol[name]) for name in protocol["generation"]},
        "batches": f"of {protocol['batch_size']} pictures",
        "data": f"{protocol['data'][:12]}, splits {', '.join(protocol['splits'])}",
        "reference": protocol["reference"][:12],
        "pictures": f"{protocol['size']} px; others are brought to it {protocol['resize']}",
        "captions": "; ".join(captions),
        "seeds": f"captions {protocol['caption_seed']}, pictures from {protocol['seed_base']}, "
        f"{protocol['seeds']} times",
        "ruler": f"{protocol['ruler'][:12]}: the protocol without how pictures are generated",
    }


def _labelled(row: Mapping[str, Any]) -> str:
    """The metric's name, with a label where the number can't be read like others."""
    labels = {"few": "few pictures", "foreign": "reference of unknown preparation"}
    found = ", ".join(label for name, label in labels.items() if row[name])
    return f"{row['metric']} ({found})" if found else row["metric"]


def _cells(record: Mapping[str, Any], *names: str) -> list[str]:
    return [_cell(record[name]) for name in names]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
