"""The three stages and their ablations on the micro-world, run whole and reported from one file a run (docs/stages.md)."""
