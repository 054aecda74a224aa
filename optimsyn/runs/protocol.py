"""The part of `Run` that its helper modules use, so that they need not import the class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.manifest import Manifest

if TYPE_CHECKING:
    from optimsyn.llm.replies import ReplyCache


class RunLike(Protocol):
    """A run for the stage handle, durations and table; `optimsyn.runs.folder.Run` implements it."""

    folder: Path
    recipe: Recipe

    @property
    def name(self) -> str:
        """Name of the folder."""

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is on disk now."""

    @property
    def replies(self) -> ReplyCache:
        """Every reply that the run has bought."""

    def path(self, *parts: str) -> Path:
        """A path inside the run."""

    def progress(self) -> dict[str, Any] | None:
        """Progress of the running stage."""

    def outcomes(self) -> dict[str, dict[str, int]]:
        """Outcomes of the requests, by role."""
