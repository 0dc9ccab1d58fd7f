"""The same seconds on the same cores: diffusers' recipe, that recipe with every option, and ours."""
