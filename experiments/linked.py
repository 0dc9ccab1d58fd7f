"""What the index shows of records that other commands wrote: sweeps, and the curves of an experiment."""

from pathlib import Path

from ldm.evaluation.report import markdown_table

SUFFIXES = (".svg", ".png")  # the first there is stands for a figure that was drawn as both


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
