"""Measures of pictures: feature extractors, distances between sets, retrieval, scores against text."""
