"""What a machine with one GPU shows of this project, measured by one command: `python -m benchmarks.gpu`."""
