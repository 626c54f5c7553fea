"""Actors and their turns: knows nothing of storage."""
