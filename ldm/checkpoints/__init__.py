"""What is kept: bundles, runs and training states."""
