"""Networks: tensors in, tensors out. They know no loss, optimizer, sampler, path or config."""
