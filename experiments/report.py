"""The index of recorded results: `python -m experiments.report` writes experiments/README.md and its figures.

The folder holds <name>/results.json, perhaps with <name>/curves, and sweep/<name>/README.md. Measured rows
and the literature's stand apart, and a table holds rows of one protocol only.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.command_line import command_line, option
from experiments.figures import draw_literature, draw_measured
from experiments.tables import UNVERIFIED, Table, literature_table, measured_table
from ldm.evaluation.published import PublishedRow, read_published
from ldm.evaluation.report import markdown_table
from ldm.evaluation.results import FILE_NAME, read_results
from ldm.io.pictures import FIGURE, carries
from ldm.io.writing import discard, make_folder, write

FOLDER = Path(__file__).parent
SUFFIXES = (".svg", ".png")  # a figure that was saved as both is shown as the first
TITLE = """# Experiments

Each folder is a run with its record: `README.md` in words, `results.json` as `python -m ldm.evaluate` wrote
it. This page is made by `make report`. A table holds rows of one protocol only, since numbers of two
protocols (other captions, features, sampler or counts) can't be compared."""
READING = """Floor: real pictures against the other real pictures, at the same count. Ceiling: the right
pictures after the autoencoder's round trip. Real: the right pictures themselves. Error bar: what ± is taken
over: the standard deviation between training seeds or sampling seeds, else the standard error of the mean
over captions. Only one over training seeds says whether a difference is one of the recipe
([compare](../docs/compare.md))."""
APART = """None of these is a number on Flickr30k: most are distances to MS-COCO's validation pictures, often
by models that never trained on COCO, with other counts, captions, code, resize, re-ranking and guidance, and
a Frechet distance is a distance to the very pictures that it was taken against. They stand here in the order
of the systems' papers, each with where it is printed, and are ranked neither among themselves nor with the
rows above."""
DAGGER = f"""{UNVERIFIED}: not checked against the source. {UNVERIFIED} alone: not looked up.
Empty: the source does not say."""


@dataclass(kw_only=True)
class Options:
    """Which results are read, and where their record goes."""

    folder: str = option(str(FOLDER), "Folder of the results; README.md and figures/ are written there.")
    wandb: str = option("", "W&B project that gets the same tables, offline where W&B does not answer.")
    records: str = option("runs/report", "Folder for W&B's record.")


def main(options: Options) -> None:
    """Writes the index.

    Raises UserError for a file of results or of published rows that is wrong.
    """
    folder = Path(options.folder)
    published, protocols = read_published(), read_protocols(folder)
    figures = folder / "figures"
    tables, sections = [literature_table(published)], [TITLE, "## Measured here", READING]
    pictures: set[Path | None] = {draw_literature(published, figures / "literature.png")}
    for (name, digest), runs in protocols.items():
        title = f"{name}-{digest[:12]}"
        table = measured_table(f"measured/{title}", runs)
        picture = draw_measured(f"protocol {title}", runs, figures / f"{title}.png")
        tables.append(table)
        pictures.add(picture)
        curves = [part for run in runs for part in curves_of(folder, run)]
        sections.append("\n\n".join([measured_section(name, digest, runs, table, picture), *curves]))
    sections += [section for section in [sweeps_section(folder)] if section]
    sections.append(literature_section(published, tables[0], figures / "literature.png"))
    write(folder / "README.md", "\n\n".join(sections) + "\n")
    for path in set(figures.glob("*.png")) - pictures:  # of protocols that are gone
        if carries(path, FIGURE):  # none of a user's
            discard(path, below=folder)
    count = sum(map(len, protocols.values()))
    print(
        f"{folder / 'README.md'}: {count} experiments under {len(protocols)} protocols, "
        f"{len(published)} published rows"
    )
    if options.wandb:
        send(tables, project=options.wandb, folder=Path(options.records))


def read_protocols(folder: Path) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Results documents by experiment, by name and hash of their protocol."""
    protocols: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.glob(f"*/{FILE_NAME}")):
        document = read_results(path)
        protocols[document["protocol"]["name"], document["protocol"]["hash"]][path.parent.name] = document
    return dict(protocols)


def measured_section(
    name: str, digest: str, runs: Mapping[str, Mapping[str, Any]], table: Table, figure: Path | None
) -> str:
    """What one protocol measured, in Markdown."""
    records = "; ".join(f"[{run}]({run}/README.md) {_record(document)}" for run, document in runs.items())
    parts = [f"### {name}", f"Protocol `{digest[:12]}`. {records}.", table.markdown()]
    return "\n\n".join([*parts, *_picture(f"{name} beside its references", figure)])


def literature_section(rows: Sequence[PublishedRow], table: Table, figure: Path) -> str:
    """What others printed, in Markdown, with their notes below."""
    notes = "\n".join(f"- {row.system}, {row.dataset}: {row.note}" for row in rows if row.note)
    picture = _picture("The literature's FID on MS-COCO", figure)
    return "\n\n".join(["## Literature", APART, table.markdown(), DAGGER, notes, *picture])


def sweeps_section(folder: Path) -> str:
    """A table of `sweep/<name>/README.md` with title and table of each, and their figures; empty
    where there is no sweep."""
    rows, figures = [], []
    for readme in sorted(folder.glob("sweep/*/README.md")):
        title, place = title_of(readme), readme.parent.relative_to(folder).as_posix()
        data = ", ".join(
            f"[{file.name}]({place}/{file.name})" for file in sorted(readme.parent.glob("*.csv"))
        )
        rows.append([f"[{title}]({place}/README.md)", data])
        figures += [f"![{title}]({place}/{file.name})" for file in readme.parent.glob("figure.png")]
    if not rows:
        return ""
    return "\n\n".join(["## Sweeps", markdown_table(("sweep", "its numbers"), rows), *figures])


def curves_of(folder: Path, run: str) -> list[str]:
    """The figures in `<run>/curves` and a line with its tables, in Markdown; empty where there are none."""
    curves = folder / run / "curves"
    figures = {path.stem: path for suffix in reversed(SUFFIXES) for path in curves.glob(f"*{suffix}")}
    parts = [f"![{run}: {name}]({run}/curves/{figures[name].name})" for name in sorted(figures)]
    tables = [f"[{path.name}]({run}/curves/{path.name})" for path in sorted(curves.glob("*.csv"))]
    if tables:
        parts.append(f"Curves of {run}: {', '.join(tables)}.")
    return parts


def title_of(readme: Path) -> str:
    """The first heading, or the folder's name where there is none."""
    lines = readme.read_text(encoding="utf-8").splitlines()
    found = next((line for line in lines if line.startswith("# ")), "")
    return found.removeprefix("# ").strip() or readme.parent.name


def send(tables: Sequence[Table], *, project: str, folder: Path) -> None:
    """Logs the tables to one W&B run, the same again each time that `folder` is the same."""
    from ldm.loggers.wandb_log import wandb_logger  # Lightning takes seconds that only this needs

    make_folder(folder)
    logger = wandb_logger(project=project, name="experiments", folder=str(folder))
    for table in tables:
        logger.record("table", table.name, table.header, table.rows, None)
    logger.end()


def _record(document: Mapping[str, Any]) -> str:
    origin = document["provenance"]
    commit = "an unknown commit" if origin["commit"] is None else origin["commit"][:10]
    facts = [f"at {commit}", f"config `{origin['config_hash'][:12]}`", origin["device"], *_costs(document)]
    return ", ".join(facts)


def _costs(document: Mapping[str, Any]) -> list[str]:
    """Parameters of the denoiser and its evaluations a picture, where the results know them."""
    found = {name: row[name] for row in document["rows"] for name in ("params", "nfe") if row.get(name)}
    words = {"params": "{:,} parameters", "nfe": "{} evaluations a picture"}
    return [text.format(found[name]) for name, text in words.items() if name in found]


def _picture(title: str, path: Path | None) -> list[str]:
    return [] if path is None else [f"![{title}]({path.parent.name}/{path.name})"]


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
