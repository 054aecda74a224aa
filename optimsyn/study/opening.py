"""What `optimsyn study` does with a study file: arms, or targets and generators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from optimsyn.base.terminal.json_document import Result
from optimsyn.batch.engines import Engine
from optimsyn.batch.plan import BatchLimits
from optimsyn.study.arms import study as arms
from optimsyn.study.study_yaml import is_transfer, read_study
from optimsyn.study.transfer import transfer as transfers


@dataclass(frozen=True)
class OpenedStudy:
    """A study file whose recipes have been read.

    Attributes:
        status: Shows how far it is and forecasts the rest, by jobs and console.
        page: Writes its page.
    """

    status: Callable[[int, Console], Result]
    page: Callable[[], Result]
    _conduct: Callable[..., int]

    def conduct(self, limits: BatchLimits, engine: Engine, console: Console) -> int:
        """Starts or continues it; returns the exit code."""
        return self._conduct(limits, engine=engine, console=console)


def open_study(path: str | Path, root: Path | str = "runs", report: Callable[[str], None] | None = None) -> OpenedStudy:
    """Opens a study file of either kind; writes nothing.

    Args:
        path: The file.
        root: Folder of the studies.
        report: Called with a line of text before each recipe of a wrong study is checked on this machine too; None:
            that is not done.

    Raises:
        RecipeError: The file or a recipe is wrong; names all problems.
    """
    if is_transfer(read_study(path)):
        transfer = transfers.Transfer.open(path, root, report)
        return OpenedStudy(
            partial(transfers.show_status, transfer),
            partial(transfers.show_page, transfer),
            partial(transfers.conduct, transfer),
        )
    study = arms.Study.open(path, root, report)
    return OpenedStudy(partial(arms.show_status, study), partial(arms.show_page, study), partial(arms.conduct, study))
