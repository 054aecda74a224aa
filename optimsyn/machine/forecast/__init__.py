"""Forecasts what a run will send and what that costs."""
