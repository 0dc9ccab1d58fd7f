"""Hydra's multirun for this laboratory: launchers that give each point a process, and Optuna's sweeper."""
