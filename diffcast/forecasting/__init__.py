"""Forecasts beside the model's own: dressed, drawn, operational."""
