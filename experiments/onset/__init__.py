"""From how many training pictures on a small model stops copying them: `python -m experiments.onset`."""
