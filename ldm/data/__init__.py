"""Shards of captioned pictures, read in an order that is a function of (seed, position)."""
