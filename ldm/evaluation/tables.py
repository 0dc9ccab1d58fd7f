"""`report.md`: the numbers of a results document for people, beside what they must be read beside."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

READING = {
    "fd_": "Frechet distance in these features, lower is better; few pictures add a bias: see the floor",
    "r1_": "share whose nearest real picture, of all, is the right one",
    "r5_": "share with the right real picture among the five nearest",
    "own_clip_score": "cosine of picture and prompt, judged by the very CLIP that conditions the model",
    "diversity_": "mean cosine distance of pictures of one caption (`between_real`: of any two real ones)",
    "psnr": "dB, autoencoder's round trip of held-out pictures",
    "ssim": "structural similarity of the same, 1 is equal",
}
COLUMNS = ("set", "metric", "value", "floor", "ceiling", "real", "images")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are text already."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def report(document: Mapping[str, Any], *, figures: Mapping[str, str]) -> str:
    """The report in Markdown.

    Args:
        document: what went into `results.json`.
        figures: file name by title, beside the report.
    """
    protocol, bundle, origin = document["protocol"], document["bundle"], document["provenance"]
    parts = [
        f"# Evaluation of {bundle['origin'].get('experiment', bundle['path'])}",
        f"Protocol `{protocol['name']}` ({protocol['hash'][:12]}), bundle {bundle['sha256'][:12]}, "
        f"commit {_commit(origin)}. Compare with other rows only where the protocol's hash is the same.",
        markdown_table(COLUMNS, [[_cell(row[column]) for column in COLUMNS] for row in document["rows"]]),
        "Floor: real pictures against the other real pictures, at the same count. Ceiling: the right "
        "pictures after the autoencoder's round trip. Real: the right pictures themselves.",
        _reading(row["metric"] for row in document["rows"]),
        _skipped(document["sets"]),
        *(f"## {title}\n\n![{title}]({name})" for title, name in figures.items()),
        "## How it was measured",
        _protocol_table(protocol),
        markdown_table(
            ("captions", "pictures", "seeds", "s", "pictures/s"),
            [
                [
                    name,
                    str(one["images"]),
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


def _reading(metrics: Iterable[str]) -> str:
    names = list(metrics)
    lines = [
        f"- `{key}`: {text}." for key, text in READING.items() if any(name.startswith(key) for name in names)
    ]
    return "\n".join(lines)


def _skipped(sets: Mapping[str, Any]) -> str:
    names = sorted({metric for one in sets.values() for metric in one["skipped"]})
    return (
        f"Not measured, since the bundle lacks the part that they need: {', '.join(names)}." if names else ""
    )


def _protocol_table(protocol: Mapping[str, Any]) -> str:
    features = protocol["features"]
    lines = {
        "features": f"{features['name']} ({features['sha256'][:12]})",
        "their input": f"{features['size']} px, {features['resize']}, antialiased",
        "sampler": protocol["sampler"],
        "guidance": protocol["guidance"],
        "data": f"{protocol['data'][:12]}, splits {', '.join(protocol['splits'])}, {protocol['size']} px",
        "captions": "; ".join(
            f"{one['name']}: {one['captions'] or 'all'} from {one['split']}, {one['samples']} each"
            for one in protocol["sets"]
        ),
        "seeds": f"captions {protocol['caption_seed']}, pictures from {protocol['seed_base']}",
        "precision": protocol["precision"],
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
