"""Executes stage notebooks: parameters, kernel, engine, runner, and opening what failed."""
