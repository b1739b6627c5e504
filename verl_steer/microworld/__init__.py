"""The embedded default: a harmless world in which every part of the method matters for a reason.

Reached by name only; nothing of the core imports it.
"""
