"""A radar whose frames arrive, and an operation that forecasts from them."""

from tests.diffcast.forecasting.test_operational import drawn, model, operation, radar

__all__ = ["drawn", "model", "operation", "radar"]
