"""Forecasts: of a model and its baselines, dressed, drawn, operational."""
