"""Weights in and out: bundles, training states, foreign dialects."""
