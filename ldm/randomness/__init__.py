"""Random numbers as a function of a seed, a purpose and a position."""
