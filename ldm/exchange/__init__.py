"""Weights of others: their files and configs as bundles, and bundles as theirs."""
