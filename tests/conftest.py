"""Fixtures that several files of tests share."""

from tests.stages_helpers import recipe, served

__all__ = ["recipe", "served"]
