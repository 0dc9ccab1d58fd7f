"""The index of what was learned: `python -m experiments.report` writes experiments/README.md.

One table a protocol: rows measured under different protocols are never put side by side.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from ldm.config import answer_errors
from ldm.evaluation.results import read_results, values

FOLDER = Path(__file__).parent
TITLE = """# Experiments

Each folder is a run with its record: `README.md` in words, `results.json` as `python -m ldm.evaluate` wrote
it. This page is made by `make report`. A table holds rows of one protocol only, since numbers of two
protocols (other captions, features, sampler or counts) can't be compared.
"""


def main() -> None:
    """Writes the index."""
    tables = defaultdict(list)
    for path in sorted(FOLDER.glob("*/results.json")):
        document = read_results(path)
        tables[document["protocol"]["name"], document["protocol"]["hash"]].append(
            (path.parent.name, document)
        )
    sections = [section(name, digest, rows) for (name, digest), rows in tables.items()]
    (FOLDER / "README.md").write_text("\n".join([TITLE, *sections]), encoding="utf-8")
    print(
        f"{FOLDER / 'README.md'}: {sum(map(len, tables.values()))} experiments under {len(tables)} protocols"
    )


def section(name: str, digest: str, rows: list[tuple[str, dict[str, Any]]]) -> str:
    """The table of one protocol."""
    metrics = sorted({metric for _, document in rows for metric in values(document)})
    head = ["metric", *(f"[{experiment}]({experiment}/README.md)" for experiment, _ in rows)]
    lines = [f"## {name}", "", f"Protocol `{digest[:12]}`.", "", line(head), line(["---"] * len(head))]
    for metric in metrics:
        cells = [values(document).get(metric) for _, document in rows]
        lines.append(line([metric, *("" if cell is None else f"{cell:.4g}" for cell in cells)]))
    commits = ", ".join(
        f"{experiment} at {document['provenance']['commit'][:10]}" for experiment, document in rows
    )
    return "\n".join([*lines, "", f"Code: {commits}.", ""])


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    answer_errors(main)
