"""Stops a run whose generator writes nothing that can be read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from optimsyn.base.errors import ReplyError, ServiceError
from optimsyn.base.secrets.redaction import redact

if TYPE_CHECKING:
    from optimsyn.llm.language_model import LanguageModel
    from optimsyn.reward.drafting import Draft


class Garbage:
    """Counts replies in a row without a pair.

    Args:
        model: The generator.
        limit: Most such replies; 0: no limit.
    """

    def __init__(self, model: LanguageModel, limit: int) -> None:
        self._model = model
        self._limit = limit
        self._latest: list[ReplyError] = []
        self._replies = 0

    def note(self, draft: Draft) -> None:
        """Takes note of a draft.

        Raises:
            ServiceError: The limit is reached.
        """
        if draft.pair is not None:
            self._latest.clear()
            self._replies = 0
        # Refused, cut and empty replies are counted where they are heard, which says what to do about them.
        if draft.unread is None or draft.unjudged is not None:
            return
        self._latest.append(draft.unread)
        self._replies += draft.wasted
        if 0 < self._limit <= len(self._latest):
            common = Counter(map(str, self._latest)).most_common(1)[0][0]
            count = len(self._latest)
            replies, self._replies = self._replies, 0
            self._latest.clear()
            self._model.set_aside_latest(replies)
            raise ServiceError(
                f"models.generator {self._model.name!r} has returned {count} replies in a row that hold no question "
                f"and answer, for example: {redact(common)[:300]}. Is it the model that you meant, does its server "
                "honour a JSON schema (models.generator.structured_output), and is models.generator.max_tokens large "
                "enough? Everything judged so far is kept, and these replies are asked for again when the run goes on."
            )
