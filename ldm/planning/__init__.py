"""Before the first step: what a training needs, and whether it can start."""
