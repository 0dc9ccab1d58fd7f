"""What happens around a training loop: averaging, saving, sampling, measuring."""
