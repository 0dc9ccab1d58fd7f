"""What was learned: each folder a run with its results; `report` draws the index."""
