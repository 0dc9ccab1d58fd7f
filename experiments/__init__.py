"""Recorded results: each folder holds a run; `report` writes the index."""
