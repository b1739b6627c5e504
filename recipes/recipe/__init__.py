"""One YAML file a recipe: `+recipe=NAME`."""
