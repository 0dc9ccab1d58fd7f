"""Draws docs/how_it_works.svg: `python docs/draw_how_it_works.py`."""

from pathlib import Path

BOX, GAP = (168, 54), 40  # width and height of a box, space between two
FILL = {"data": "#e8f0fe", "network": "#fde9d9", "result": "#e6f4ea"}
ROWS = (  # one row a path of data: (kind, title, subtitle); a title that is empty leaves its place free
    (
        ("data", "pictures, captions", "your folder"),
        ("data", "shards, index", "data_prep"),
        ("network", "autoencoder", "picture to latent"),
        ("data", "cached latents", "mean, variance"),
        ("network", "denoiser", "U-Net or DiT"),
    ),
    (
        ("", "", ""),
        ("", "", ""),
        ("network", "text encoder", "caption to context"),
        ("data", "context", "one row per token"),
        ("result", "bundle", "weights and settings"),
    ),
    (
        ("data", "prompt, seed", "ldm.sample"),
        ("network", "guidance", "cond., uncond. x0"),
        ("network", "sampler", "timesteps from 1 to 0"),
        ("network", "decoder", "latent to picture"),
        ("result", "PNG", "with its settings"),
    ),
    (
        ("data", "protocol", "captions, metrics"),
        ("network", "feature networks", "Inception, CLIP, ..."),
        ("network", "metrics", "FID, precision, ..."),
        ("result", "results.json", "with hash and commit"),
        ("result", "report.md", "figures, references"),
    ),
)
LABELS = ("train", "", "sample", "evaluate")
ARROWS = (  # from (row, column) to (row, column)
    *(((0, column), (0, column + 1)) for column in range(4)),
    ((0, 1), (1, 2)),
    ((1, 2), (1, 3)),
    ((1, 3), (0, 4)),
    ((0, 4), (1, 4)),
    *(((2, column), (2, column + 1)) for column in range(4)),
    *(((3, column), (3, column + 1)) for column in range(4)),
)
LEFT, TOP, ROW = 92, 16, 92


def corner(row: int, column: int) -> tuple[int, int]:
    """Upper left corner of a box."""
    return LEFT + column * (BOX[0] + GAP), TOP + row * ROW


def box(row: int, column: int, kind: str, title: str, subtitle: str) -> str:
    """A rounded box with a title and a subtitle."""
    x, y = corner(row, column)
    middle = x + BOX[0] // 2
    return (
        f'<rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="8" fill="{FILL[kind]}"'
        ' stroke="#5f6368"/>'
        f'<text x="{middle}" y="{y + 23}" font-size="15" font-weight="bold">{title}</text>'
        f'<text x="{middle}" y="{y + 42}" font-size="12" fill="#3c4043">{subtitle}</text>'
    )


def arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """A line from the right or lower edge of a box to the left or upper edge of another."""
    (x1, y1), (x2, y2) = corner(*start), corner(*end)
    middle = BOX[1] // 2
    if start[1] == end[1]:
        points = (x1 + BOX[0] // 2, y1 + BOX[1], x2 + BOX[0] // 2, y2)
    else:
        points = (x1 + BOX[0], y1 + middle, x2, y2 + middle)
    return '<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="#3c4043" marker-end="url(#head)"/>'.format(*points)


def drawing() -> str:
    """The svg."""
    width, height = LEFT + 5 * BOX[0] + 4 * GAP + 16, TOP + 3 * ROW + BOX[1] + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' text-anchor="middle"><title>How data flows through training, sampling and evaluation</title>',
        '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z" fill="#3c4043"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for row, label in enumerate(LABELS):
        y = TOP + row * ROW + BOX[1] // 2 + 5
        parts.append(f'<text x="44" y="{y}" font-size="15" font-weight="bold" fill="#1a73e8">{label}</text>')
    parts += [arrow(start, end) for start, end in ARROWS]
    parts += [
        box(row, column, *texts)
        for row, boxes in enumerate(ROWS)
        for column, texts in enumerate(boxes)
        if texts[1]
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("how_it_works.svg").write_text(drawing(), encoding="utf-8")
