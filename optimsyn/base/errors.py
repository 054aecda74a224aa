"""The errors that optimsyn raises on purpose.

Every message names the file, row or recipe field, what was wrong and what to do about it.
"""

from __future__ import annotations

import errno
from enum import StrEnum


class OptimsynError(Exception):
    """Base class: a message for a person, shown by the CLI without a traceback."""


class RecipeError(OptimsynError):
    """A recipe field is wrong or names something that does not exist."""


class DataError(OptimsynError):
    """A document, question or pair file holds a row that cannot be used."""


class ServiceError(OptimsynError):
    """A language-model service failed for good (wrong key, dead port, exhausted retries).

    A pair that could not be judged because of this is *not* invalid: the run stops, everything paid for is kept, and
    running again continues.
    """


class Outcome(StrEnum):
    """The outcome of one request to a model.

    Only `invalid` says something about the models. The others say that there is nothing to judge: a rubric whose pair
    was cut, refused or never written is neither good nor bad.
    """

    READ = "read"
    INVALID = "invalid"
    CUT = "cut"
    REFUSAL = "refusal"
    TOOL_CALL = "tool_call"
    EMPTY = "empty"

    @property
    def unjudged(self) -> bool:
        """Whether there is nothing that could be judged."""
        return self not in (Outcome.READ, Outcome.INVALID)


class ReplyError(OptimsynError):
    """A reply arrived but holds no usable rubric or pair.

    Attributes:
        outcome: What the reply was instead. Only `invalid` is the writer's fault.
        replies: How many replies were requested in vain.
    """

    def __init__(self, message: str, outcome: Outcome = Outcome.INVALID, *, replies: int = 1) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.replies = replies


class ModelError(OptimsynError):
    """A local model cannot be loaded, or a sample cannot be scored or trained on."""


class StageError(OptimsynError):
    """A stage of a run failed or was interrupted."""


class ParameterError(StageError):
    """A notebook's parameter is unknown, of a wrong type or out of range; nothing has started."""


class BudgetError(OptimsynError):
    """A cap of the recipe on money, requests or tokens was reached; everything paid for is kept."""


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def disk_trouble(error: Exception) -> str | None:
    """A message when a file or folder cannot be used; None for any other error."""
    if not isinstance(error, OSError) or (error.filename is None and error.errno not in _DISK):
        return None
    place = "" if error.filename is None else f"{error.filename}: "
    cure = "fix its permissions or free space, or name another place"
    return f"{type(error).__name__}: {place}{error.strerror}; {cure}\n"
