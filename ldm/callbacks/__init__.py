"""Callbacks of a training: EMA, checkpoints, samples, metrics, pace."""
