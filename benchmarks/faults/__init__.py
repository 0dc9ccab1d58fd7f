"""Kinds of damage that data can have, each with what must come of it: one list for tests and benchmark."""
