"""Detects custom readers that changed since `prepare` read the documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.base.errors import StageError
from optimsyn.base.identity import differing
from optimsyn.data.files.readers import reader_identity

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run

READERS_NOTE = "readers"
"""Key in the manifest's stage notes."""


def reopen_if_readers_changed(run: Run) -> None:
    """Reopens a finished `prepare` when a custom reader was edited since, so that it runs again.

    Raises:
        StageError: A later stage has used the reader's earlier output.
        RecipeError: A reader of the recipe cannot be found.
    """
    record = run.manifest.stage("prepare")
    if record.status != "finished" or not run.recipe.documents.readers:
        return
    changed = differing(record.notes.get(READERS_NOTE, {}), reader_identity(run.recipe.documents.readers))
    if not changed:
        return
    later = [other.name for other in run.manifest.stages if other.status == "finished" and other.name != "prepare"]
    if later:
        raise StageError(
            f"{run.name}: {' and '.join(changed)} changed since stage prepare finished, and {', '.join(later)} used "
            "its documents. Undo the change and run again; or start over under another --root (or after "
            f"removing {run.folder})"
        )
    run.reopen("prepare")
