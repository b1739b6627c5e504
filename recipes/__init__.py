"""The recipes, installed from the top-level folder `recipes/`."""
