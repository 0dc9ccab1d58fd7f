"""Before the first step: what a training takes, and whether it can start."""
