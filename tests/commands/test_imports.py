"""`--help` loads nothing that it does not show: counted in modules, not in seconds."""

import pytest

from benchmarks.import_time import VERBS, cost_of, row

HEAVY = {"torch", "pytorch_lightning", "torchmetrics", "scipy.stats", "webdataset", "wandb", "open_clip"}


@pytest.mark.parametrize("verb", VERBS)
def test_help_needs_neither_torch_nor_what_imports_it(verb):
    cost = cost_of(["-m", verb, "--help"])
    assert not HEAVY & cost.imports.keys()
    assert len(cost.imports) < 1000  # torch alone has more
    assert len(row(verb, [cost], top=2)) == 6
