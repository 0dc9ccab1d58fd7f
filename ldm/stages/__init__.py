"""Lightning modules, each of which trains one network."""
