"""How every row was lost between the documents and the final dataset."""

from __future__ import annotations

from optimsyn.data.records import Record


class Loss(Record):
    """One lost row.

    Attributes:
        id: Id of the document, passage, question or pair that was lost.
        stage: Where it was lost: `documents`, `passages`, `questions`, `split`, `checks`, ...
        reason: Why, in a few words for a person.
        detail: The whole message, if `reason`, by which losses are counted, is only a summary.
    """

    id: str
    stage: str
    reason: str
    detail: str = ""
