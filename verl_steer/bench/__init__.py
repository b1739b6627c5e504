"""STEER-Bench: play held-out dialogues with a model, judge every turn, show the result (docs/bench.md)."""
