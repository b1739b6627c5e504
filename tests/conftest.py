"""Shared by all tests."""

from hypothesis import settings

# A deadline per example measures the machine, not the code: on a busy one it fails at random.
settings.register_profile("verl_steer", deadline=None)
settings.load_profile("verl_steer")
