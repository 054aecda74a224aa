"""What changing and resizing need of a recipe, so that the recipe itself can call them."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self, TypeVar

from optimsyn.recipe.sections.models import Section


class Whole(Section):
    """A section that is a file of its own."""

    @classmethod
    @abstractmethod
    def parse(cls, raw: dict[str, Any], name: str = "recipe", *, of_run: bool = False) -> Self:
        """Builds it from a plain mapping."""

    @abstractmethod
    def with_paths_from(self, folder: Path, *, of_run: bool = False) -> Self:
        """The same with all relative paths resolved against `folder`."""


WholeT = TypeVar("WholeT", bound=Whole)
