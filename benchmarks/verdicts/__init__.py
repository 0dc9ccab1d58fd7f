"""Is a difference one of the recipe, or of the seed? Short trainings that answer it."""
