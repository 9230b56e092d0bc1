"""Frames as the levels that a model sees, decoded once and stored by day."""
