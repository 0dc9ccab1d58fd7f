"""Tables in W&B beside the curves."""

from collections.abc import Sequence

from pytorch_lightning.loggers import Logger


def log_table(
    loggers: Sequence[Logger], *, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> int:
    """Logs one table to every logger that takes tables, and says how many did.

    Args:
        name: its key there.
        rows: cells are text, so a column has one type whatever is empty in it.
    """
    takers = [logger for logger in loggers if hasattr(logger, "log_table")]  # W&B
    for logger in takers:
        logger.log_table(name, columns=list(header), data=[list(row) for row in rows])
    return len(takers)
