"""`report.md`: the numbers of a results document for people, beside what they must be read beside."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.io.curves import read_curves
from ldm.io.writing import write

if TYPE_CHECKING:  # tables are made where torch isn't loaded, too
    from ldm.evaluation.result_types import Closest, SetResult

GENERATION = ("sampler", "guidance", "nfe", "precision")  # where a document lists no settings
COLUMNS = ("set", "metric", "value", "floor", "ceiling", "real", "images", "NFE", "s", "params")
SWEPT = (
    "bundle",
    "sampler",
    "steps",
    "scale",
    "nfe",
    "set",
    "metric",
    "value",
    "floor",
    "ceiling",
    "images",
    "seconds",
)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as csv; None is empty."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are text already."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def write_report(
    folder: Path, document: dict[str, Any], sets: Iterable["SetResult"], *, curves: Path | None = None
) -> None:
    """Fills a folder.

    Args:
        document: the results.
        sets: their pictures.
        curves: a run's `metrics.jsonl`; nothing is drawn where it doesn't exist.
    """
    from ldm.evaluation.figures import beside, comparison, pair_sheet, save_curves, save_png
    from ldm.evaluation.results import FILE_NAME, write_results

    figures, notes = {}, {}
    for each in sets:
        if each.shown:
            half = -(-len(each.shown) // 2)
            columns = [comparison(part) for part in (each.shown[:half], each.shown[half:]) if part]
            file = save_png(beside(columns), folder / f"{each.name}.png")
            figures[f"{each.name}: generated, nearest real, right one"] = file.name
        if each.closest is not None:
            title = f"{each.name}: the generated pictures nearest to real ones"
            file = save_png(pair_sheet(each.closest.pairs), folder / f"{each.name}_memorisation.png")
            figures[title], notes[title] = file.name, memorisation_sentence(each.closest)
    if curves is not None and curves.is_file() and (found := read_curves(curves)):
        figures["training"] = save_curves(found, folder / "curves.png", title=str(curves.parent)).name
    write(folder / "report.md", report(document, figures=figures, notes=notes))
    write_results(folder / FILE_NAME, document)


def report(
    document: Mapping[str, Any], *, figures: Mapping[str, str], notes: Mapping[str, str] | None = None
) -> str:
    """The report in Markdown.

    Args:
        document: what went into `results.json`.
        figures: file name by title, beside the report.
        notes: what is said below some of them, by title.
    """
    protocol, bundle, origin = document["protocol"], document["bundle"], document["provenance"]
    parts = [
        f"# Evaluation of {bundle['origin'].get('experiment', bundle['path'])}",
        f"Protocol `{protocol['name']}` ({protocol['hash'][:12]}), {bundle['kind']} {bundle['sha256'][:12]}, "
        f"commit {_commit(origin)}. Compare with other rows only where the protocol's hash is the same.",
        markdown_table(COLUMNS, [measured_cells(row) for row in document["rows"]]),
        "Value: mean ± standard deviation over the seeds. Floor: real pictures against as many others, each "
        "side as many as were drawn, or half of all. Ceiling: the right pictures after the autoencoder's "
        "round trip. Real: the right pictures themselves, or as many real ones where nobody knows which are "
        "right. s: of drawing and looking, all seeds together.",
        _readings(document.get("readings", {})),  # results of earlier versions have none
        _skipped(document["sets"]),
        *(_figure(title, name, (notes or {}).get(title, "")) for title, name in figures.items()),
        "## How it was measured",
        _protocol_table(protocol),
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


def measured_cells(row: Mapping[str, Any]) -> list[str]:
    """A number as `COLUMNS` show it: with its spread, with a word where it can't be read like others."""
    value = _cell(row["value"]) if row["sd"] is None else f"{_cell(row['value'])} ± {row['sd']:.2g}"
    images = f"{row['images']}, {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
    params = None if row["params"] is None else f"{row['params'] / 1e6:.1f} M"
    references = _cells(row, "floor", "ceiling", "real")
    return [
        row["set"],
        _labelled(row),
        value,
        *references,
        images,
        *_cells(row, "nfe", "seconds"),
        _cell(params),
    ]


def numbers_table(rows: Sequence[Mapping[str, Any]], *, axes: Sequence[str] = ()) -> str:
    """Numbers beside what they must be read beside, for a terminal.

    Args:
        rows: of a results document, or lines of a sweep.
        axes: of the sweep; one that no line sets is left out.
    """
    varied = [axis for axis in axes if any(row[axis] is not None for row in rows)]
    lines = [[*varied, *COLUMNS], *([*_cells(row, *varied), *measured_cells(row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def sweep_report(lines: Sequence[Mapping[str, Any]], *, figures: Mapping[str, str]) -> str:
    """The report of a sweep in Markdown: its points are measured alike and drawn in different ways."""
    parts = [
        "# Sweep",
        f"Measured by the ruler {lines[0]['ruler'][:12]}; each way to draw is a protocol of its own. Hashes "
        f"are in `sweep.csv`, everything else in `point_<number>.json`.",
        markdown_table(SWEPT, [_cells({**line, "metric": _labelled(line)}, *SWEPT) for line in lines]),
        *(f"## {title}\n\n![{title}]({name})" for title, name in figures.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _labelled(row: Mapping[str, Any]) -> str:
    """The metric's name, with a word where the number can't be read like others."""
    labels = {"few": "few pictures", "foreign": "reference of unknown preparation"}
    told = ", ".join(label for name, label in labels.items() if row[name])
    return f"{row['metric']} ({told})" if told else row["metric"]


def _readings(readings: Mapping[str, str]) -> str:
    """A line a sentence, with all metrics that it explains."""
    metrics: dict[str, list[str]] = {}
    for name, sentence in readings.items():
        metrics.setdefault(sentence, []).append(f"`{name}`")
    return "\n".join(f"- {', '.join(names)}: {sentence}." for sentence, names in metrics.items())


def _skipped(sets: Mapping[str, Any]) -> str:
    names = sorted({metric for one in sets.values() for metric in one["skipped"]})
    return f"Not measured, for want of a network or of real pictures: {', '.join(names)}." if names else ""


def memorisation_sentence(closest: "Closest") -> str:
    """How many pictures count as copies, by which limit, and what the figure shows."""
    limit = (
        f"a distance of {closest.limit:.3f} in {closest.features}, which {1 - closest.quantile:.0%} of the "
        f"real pictures keep from each other"
    )
    if closest.copied == 0:
        return (
            f"None of the first {closest.images} pictures is nearer to a real one than {limit}; these are "
            f"the nearest all the same."
        )
    return (
        f"{closest.copied} of the first {closest.images} pictures are nearer to a real one than {limit}; "
        f"the nearest come first."
    )


def _figure(title: str, name: str, note: str) -> str:
    return "\n\n".join(part for part in (f"## {title}", f"![{title}]({name})", note) if part)


def _protocol_table(protocol: Mapping[str, Any]) -> str:
    lines = {
        "features": "; ".join(
            f"{one['name']} ({one['sha256'][:12]}) at {one['size']} px, {one['resize']}, "
            f"{'' if one['rounded'] else 'not '}rounded"
            for one in protocol["features"]
        ),
        "distances": "; ".join(protocol["distances"]),
        "measures": "; ".join(protocol["measures"]),
        **{
            "NFE" if name == "nfe" else name: _cell(protocol[name])
            for name in protocol.get("generation", GENERATION)
        },
        "batches": f"of {protocol['batch_size']} pictures",
        "data": f"{protocol['data'][:12]}, splits {', '.join(protocol['splits'])}",
        "reference": protocol["reference"][:12],
        "pictures": f"{protocol['size']} px; others are brought to it {protocol['resize']}",
        "captions": "; ".join(
            f"{one['name']}: {one['captions'] or 'all'} from {one['split'] or 'the pictures'}, each another "
            f"{one['unit']}, pictures of each: {one['samples']} ({one['sha256'][:12]})"
            for one in protocol["sets"]
        ),
        "seeds": f"captions {protocol['caption_seed']}, pictures from {protocol['seed_base']}, "
        f"{protocol['seeds']} times",
        "ruler": f"{protocol['ruler'][:12]}: the protocol without how pictures are drawn",
    }
    return markdown_table(("what", "setting"), lines.items())


def _commit(origin: Mapping[str, Any]) -> str:
    commit = origin["commit"]
    return "unknown" if commit is None else f"{commit[:12]}{' with changes' if origin['dirty'] else ''}"


def _cells(record: Mapping[str, Any], *names: str) -> list[str]:
    return [_cell(record[name]) for name in names]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
