"""A checkpoint in this process: the only folder of the bench that imports torch."""
