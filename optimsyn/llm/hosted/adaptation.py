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
# Parameters that a request can omit, and the recipe's setting for that. A recipe cannot set `stop`.
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

    Attributes:
        report: Called once with each thing learned; by default it logs a warning.
    """

    def __init__(self, name: str, service: str, memory: ServiceMemory) -> None:
        self.name = name
        self.service = service
        self._memory = memory
        self._schemas = SchemaCounts()
        self._refused_limits: set[str] = set()
        self.report: Callable[[str], None] = lambda message: _log.warning("%s", message)

    @property
    def known(self) -> Learned:
        """What any process of the run has learned about the service."""
        return self._memory.of(self.service)

    def to(self, failure: Failure, sent: Mapping[str, Any], *, limit_is_given: bool = False) -> bool:
        """Removes from further requests the parameters that a refusal names, if they were sent."""
        adapted = False
        limit = next((name for name in LIMIT_NAMES if name in sent), None)
        # Under either name, since LiteLLM may have renamed it.
        if limit is not None and not limit_is_given and failure.parameters & set(LIMIT_NAMES):
            self._refuse_limit(limit, failure.answer)
            adapted = True
        for name in sorted(failure.parameters & _LEFT_OUT.keys() & sent.keys()):
            message = f"{self.name} takes no {name}; it is not sent from now on ({failure.answer})"
            if (field := _LEFT_OUT[name]) is not None:
                message += f". `{field}` in the recipe says so from the start"
            self._leave_out(name, failure.answer, message)
            adapted = True
        return adapted

    def _refuse_limit(self, limit: str, answer: str) -> None:
        """Switches to the other name of the limit, or to none where both were refused."""
        self._refused_limits.add(limit)
        other = _LIMITS[limit]
        if other not in self._refused_limits:
            message = f"{self.name} takes {other} in place of {limit}, which is sent from now on ({answer})"
        else:
            other = "none"
            message = (
                f"{self.name} takes neither max_tokens nor max_completion_tokens; no limit on its replies is sent from "
                "now on, so replies longer than the recipe's max_tokens can exceed a cap "
                f"({answer}). `limit_name: none` in the recipe says so from the start"
            )
        self._learn(lambda known: replace(known, limit_name=other), message)

    def unlisted(self, names: Iterable[str], asked: Container[str]) -> None:
        """Leaves out parameters that LiteLLM lists as not taken; says so of those that the recipe sets."""
        for name in sorted(names):
            message = f"{self.name} takes no {name}, as LiteLLM lists it; it is not sent"
            self._leave_out(name, BY_THE_LIST, message if name in asked else "")

    def schemas(self, *, taken: str | None, refused: str | None) -> None:
        """Counts an accepted schema, or a refused one whose request was answered without it."""
        if taken is not None:
            self._schemas.taken(taken)
            self._learn(lambda known: replace(known, schemas_taken=known.schemas_taken | {taken}))
        if refused is None:
            return
        after = self._schemas.refused(refused, self.known)
        if after.schemas_off:
            message = (
                f"{self.name} takes no JSON schema; its replies are read without one from now on. "
                "`structured_output: false` in the recipe says so from the start"
            )
            self._learn(lambda known: replace(known, schemas_off=True), message)
        elif refused in after.schemas_left_out:
            message = f"{self.name} refuses one of several JSON schemas each time; it is not sent any more"
            self._learn(lambda known: replace(known, schemas_left_out=known.schemas_left_out | {refused}), message)

    def price_is_unknown(self, cure: str = "give `prices` or `base_model` in the recipe") -> None:
        """Records that the price of replies is unknown, and reports the cure."""
        self._learn(
            lambda known: replace(known, price_unknown=True),
            f"{self.name}: its price is not known, so its cost is not counted; {cure}",
        )

    def usage_is_unlikely(self, counts: str) -> None:
        """Records that the service reported implausible token counts."""
        self._learn(lambda known: replace(known, usage=known.usage or counts), usage_sentence(self.name, counts))

    def _leave_out(self, name: str, answer: str, message: str) -> None:
        self._learn(lambda known: replace(known, left_out={name: answer, **known.left_out}), message)

    def _learn(self, changed: Callable[[Learned], Learned], message: str = "") -> None:
        if self._memory.change(self.service, changed) and message:
            self.report(message)


def schema_digest(schema: Mapping[str, Any]) -> str:
    """Identifies a schema in a run's memory."""
    return digest_of(schema, 12)
