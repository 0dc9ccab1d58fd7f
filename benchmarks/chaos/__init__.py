"""Ends trainings in all ways that a machine can and looks at what they left: `python -m benchmarks.chaos`."""
