"""Tables in loggers that take them, beside the curves."""

from collections.abc import Sequence

from pytorch_lightning.loggers import Logger

from ldm.loggers.background import Cell, asides


def log_table(
    loggers: Sequence[Logger],
    *,
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    step: int | None = None,
) -> int:
    """Logs one table to every logger that takes tables, and says how many did.

    Args:
        name: its key there.
        rows: cells are text or pictures, so a column has one type whatever is empty in it.
        step: at which it was made, if it belongs to a training.
    """
    takers = asides(loggers)
    for logger in takers:
        logger.log_table(name, header=list(header), rows=[list(row) for row in rows], step=step)
    return len(takers)
