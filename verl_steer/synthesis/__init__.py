"""Stages I and II: single-turn seeds into scripts and dialogues, and their selection into splits."""
