"""Ranks: who starts and watches them, how they meet, what they exchange, and weights in shards."""
