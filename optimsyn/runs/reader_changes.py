"""Whether the readers of the user's own are those that `prepare` read the documents with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.base.errors import StageError
from optimsyn.base.identity import differing
from optimsyn.data.files.readers import reader_identity

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run

READERS_NOTE = "readers"
"""Name of the fact in the manifest's stage record."""


def reopen_if_readers_changed(run: Run) -> None:
    """Takes a finished prepare as not done when a reader of the user's own was edited since, so that it is made anew.

    Raises:
        StageError: A later stage has finished with what the reader gave before.
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
            "its documents. Put the reader back as it was and run again; or start again under another --root (or after "
            f"removing {run.folder})"
        )
    run.reopen("prepare")
