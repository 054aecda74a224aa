"""Adapts requests to what a service has refused: reported once, remembered for every process of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optimsyn.base.identity import digest_of
from optimsyn.llm.hosted.service_memory import (
    BY_THE_LIST,
    LIMIT_NAMES,
    Learned,
    LimitName,
    SchemaCounts,
    ServiceMemory,
    usage_sentence,
)

if TYPE_CHECKING:
    from optimsyn.llm.hosted.failures import Failure

_log = logging.getLogger(__name__)
# Parameters that a request can do without, and what a recipe says instead. Texts that end a reply are ours alone.
_LEFT_OUT = {
    "temperature": "temperature: null",
    "top_p": "top_p: null",
    "seed": "send_seed: false",
    "reasoning_effort": "reasoning_effort: null",
    "stop": None,
}
_LIMITS: dict[str, LimitName] = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


class Adaptation:
    """What one model's service has refused so far.

    Args:
        name: The model, for a person.
        service: What it is remembered under: the model, and the address where it is no usual one.
        memory: Of the run.

    Attributes:
        tell: Called once with what was learned; by default it logs a warning.
    """

    def __init__(self, name: str, service: str, memory: ServiceMemory) -> None:
        self.name = name
        self.service = service
        self._memory = memory
        self._schemas = SchemaCounts()
        self._refused_limits: set[str] = set()
        self.tell: Callable[[str], None] = lambda said: _log.warning("%s", said)

    @property
    def known(self) -> Learned:
        """What the service has answered about itself, to any process of the run."""
        return self._memory.of(self.service)

    def to(self, failure: Failure, sent: Mapping[str, Any], *, limit_is_given: bool = False) -> bool:
        """Takes out of further requests what a refusal says the service does not take.

        Args:
            failure: The refusal.
            sent: The parameters of the refused request.
            limit_is_given: The recipe says what the longest reply is called.

        Returns:
            Whether the next request is another one; False when nothing of what was sent is named.
        """
        adapted = False
        limit = next((name for name in LIMIT_NAMES if name in sent), None)
        # Whatever the service, or LiteLLM on the way to it, calls it.
        if limit is not None and not limit_is_given and failure.parameters & set(LIMIT_NAMES):
            self._refuse_limit(limit, failure.said)
            adapted = True
        for name in sorted(failure.parameters & _LEFT_OUT.keys() & sent.keys()):
            said = f"{self.name} takes no {name}; it is not sent from now on ({failure.said})"
            if (field := _LEFT_OUT[name]) is not None:
                said += f". `{field}` in the recipe says so from the start"
            self._leave_out(name, failure.said, said)
            adapted = True
        return adapted

    def _refuse_limit(self, limit: str, answer: str) -> None:
        """Calls the longest reply by its other name, or does not send it where both were refused."""
        self._refused_limits.add(limit)
        other = _LIMITS[limit]
        if other not in self._refused_limits:
            said = f"{self.name} calls max_tokens {other}, and is asked that way from now on ({answer})"
        else:
            other = "none"
            said = (
                f"{self.name} takes neither max_tokens nor max_completion_tokens; no longest reply is sent from now "
                "on, so a cap can be exceeded by as much as a reply is longer than the recipe's max_tokens "
                f"({answer}). `limit_name: none` in the recipe says so from the start"
            )
        self._learn(lambda known: replace(known, limit_name=other), said)

    def unlisted(self, names: Iterable[str], asked: Container[str]) -> None:
        """Leaves out parameters that LiteLLM lists as not taken.

        Args:
            names: The parameters.
            asked: Fields that the recipe sets itself; the others are left out without a word on the screen.
        """
        for name in sorted(names):
            said = f"{self.name} takes no {name} by LiteLLM's list; it is not sent"
            self._leave_out(name, BY_THE_LIST, said if name in asked else "")

    def schemas(self, *, taken: str | None, refused: str | None) -> None:
        """Counts that a schema was taken, or that one was refused and its request answered without it.

        Args:
            taken: Digest of the schema that was sent with an answered request.
            refused: Digest of the schema that was refused before it.
        """
        if taken is not None:
            self._schemas.taken(taken)
            self._learn(lambda known: replace(known, schemas_taken=known.schemas_taken | {taken}))
        if refused is None:
            return
        after = self._schemas.refused(refused, self.known)
        if after.schemas_off:
            said = (
                f"{self.name} takes no JSON schema; its replies are read without one from now on. "
                "`structured_output: false` in the recipe says so from the start"
            )
            self._learn(lambda known: replace(known, schemas_off=True), said)
        elif refused in after.schemas_left_out:
            said = f"{self.name} refuses one of several JSON schemas each time; it is not sent any more"
            self._learn(lambda known: replace(known, schemas_left_out=known.schemas_left_out | {refused}), said)

    def price_is_unknown(self, cure: str = "give `prices` or `base_model` in the recipe") -> None:
        """Remembers that replies came whose price nobody says, and what could be done about it."""
        self._learn(
            lambda known: replace(known, price_unknown=True),
            f"{self.name}: its price is not known, so its cost is not counted; {cure}",
        )

    def usage_is_unlikely(self, said: str) -> None:
        """Remembers that the service said of its tokens what cannot be true.

        Args:
            said: What it said.
        """
        self._learn(lambda known: replace(known, usage=known.usage or said), usage_sentence(self.name, said))

    def _leave_out(self, name: str, answer: str, said: str) -> None:
        self._learn(lambda known: replace(known, left_out={name: answer, **known.left_out}), said)

    def _learn(self, changed: Callable[[Learned], Learned], said: str = "") -> None:
        if self._memory.change(self.service, changed) and said:
            self.tell(said)


def schema_digest(schema: Mapping[str, Any]) -> str:
    """Names a schema in a run's memory."""
    return digest_of(schema, 12)
