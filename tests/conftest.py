"""What the tests share, in `tests/shared.py`, is loaded by the processes that run tests."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Spares the process that only hands tests to workers (`-n 2`) the imports, which take six seconds."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("tests.shared")
