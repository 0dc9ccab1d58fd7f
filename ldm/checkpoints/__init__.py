"""Files of trainings: bundles, run directories and checkpoints."""
