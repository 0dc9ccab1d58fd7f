"""From a generator to numbers that can be compared: protocol, generation, scores, results, report."""
