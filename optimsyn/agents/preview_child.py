"""`python -m optimsyn.agents.preview_child RUN PAIRS OUTPUT`: a preview in a process of its own, as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

from optimsyn.base.environment import PARENT, variable
from optimsyn.base.errors import OptimsynError
from optimsyn.base.files import write_text
from optimsyn.base.secrets.redaction import redact


def main(folder: str, pairs: str, output: str) -> None:
    """Writes the preview of an existing run."""
    from contextlib import ExitStack

    from optimsyn.execution.runner import embedded_server
    from optimsyn.machine.preflight_services import open_asked
    from optimsyn.runs.folder import Run

    run = open_asked(Run.load(folder).recipe, Path(folder).parent)
    with run.lock(), ExitStack() as stack:
        from optimsyn.stages.preview import preview

        stack.enter_context(embedded_server(run))
        made = preview(run, int(pairs))
    write_text(Path(output), made.model_dump_json())


if __name__ == "__main__":
    if variable(PARENT) is not None:
        from optimsyn.batch.lifeline import end_with_parent

        end_with_parent()
    try:
        main(*sys.argv[1:])
    except OptimsynError as error:
        sys.exit(f"{type(error).__name__}: {redact(str(error))}")
