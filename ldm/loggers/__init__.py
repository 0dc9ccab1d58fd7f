"""Where the numbers and pictures of a training go: `metrics.jsonl`, TensorBoard, W&B."""
