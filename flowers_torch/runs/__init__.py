"""A run, from its configuration to its folder: the recipe, its stages, and what works on finished runs."""
