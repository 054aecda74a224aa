"""Executes stage notebooks: parameters, kernel, engine, runner, and opening failed ones."""
