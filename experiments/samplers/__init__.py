"""Every sampler of conf/sampler on the shipped model: `python -m experiments.samplers`."""
