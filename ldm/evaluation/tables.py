"""`report.md`: the numbers of a results document for people, beside what they must be read beside."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command that refuses its options has not loaded torch
    from ldm.evaluation.result_types import Closest

READING = {
    "fid": "Frechet inception distance, lower is better; few pictures add a bias: see the floor",
    "fd_": "Frechet distance in these features, lower is better; few pictures add a bias: see the floor",
    "kid": "kernel inception distance, unbiased at any count: 0 for equal sets, and may fall below",
    "kd_": "kernel distance in these features, unbiased at any count: 0 for equal sets, and may fall below",
    "cmmd_": "discrepancy in a CLIP's space times 1,000, lower is better, never below 0",
    "is_": "Inception Score, mean and deviation over 10 parts; falls with the count: see the real ones'",
    "precision_": "share of the pictures that lie where real ones do",
    "recall_": "share of the real pictures that lie where those measured do",
    "density_": "how many real pictures' neighbourhoods one lies in, against what real ones would",
    "coverage_": "share of the real pictures with one in their neighbourhood",
    "r_precision_": "share whose own caption is the nearest among 100",
    "vendi_": "how many different pictures the set amounts to",
    "memorised_": "share nearer to a training picture than 99 % of these are to each other",
    "r1_": "share whose nearest real picture, of all, is the right one",
    "r5_": "share with the right real picture among the five nearest",
    "own_clip_score": "cosine of picture and prompt, judged by the very CLIP that conditions the model",
    "clip_": "cosine of picture and prompt, judged by this CLIP",
    "diversity_": "mean distance of pictures of one caption, cosine or the perceptual one that is named "
    "(`between_real`: of any two real ones)",
    "rfid": "Frechet inception distance of the autoencoder's round trip to the same pictures",
    "rfd_": "Frechet distance of the round trip to the same pictures, in these features",
    "lpips": "learned perceptual distance (AlexNet) of the round trip, lower is better",
    "perceptual_": "perceptual distance of the round trip in this network's maps, which is not LPIPS",
    "psnr": "dB, autoencoder's round trip of held-out pictures",
    "ssim": "structural similarity of the same, 1 is equal",
}
GENERATION = (
    "sampler",
    "guidance",
    "nfe",
    "precision",
)  # where a document lists no settings
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
        _reading(row["metric"] for row in document["rows"]),
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


def _reading(metrics: Iterable[str]) -> str:
    names = list(metrics)
    lines = [
        f"- `{key}`: {text}." for key, text in READING.items() if any(name.startswith(key) for name in names)
    ]
    return "\n".join(lines)


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
