"""What the parts of this room ask of a run, so that they need not know the class that puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.manifest import Manifest

if TYPE_CHECKING:
    from optimsyn.llm.replies import ReplyCache


class RunLike(Protocol):
    """A run as its stage's handle, its durations and its table see it; `optimsyn.runs.folder.Run` is one."""

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
        """How far the stage that runs is."""

    def outcomes(self) -> dict[str, dict[str, int]]:
        """What came of the requests, by role."""
