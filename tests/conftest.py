"""The fixtures, in `tests/fixtures.py`, are loaded by the processes that run tests alone."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Spares the process that only hands tests to workers (`-n 2`) the imports, which take six seconds."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("tests.fixtures")
