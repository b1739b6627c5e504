"""Stages I and II: single-turn seeds into STEER-SFT, STEER-RL and STEER-Bench."""
