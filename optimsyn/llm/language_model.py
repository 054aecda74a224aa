"""A language model, wherever it runs: one way to call it, with cache, budget and honest failures."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from optimsyn.base.errors import OptimsynError, Outcome, ReplyError
from optimsyn.base.event_loops import REQUESTS, run_sync
from optimsyn.base.identity import digest_of
from optimsyn.llm.outcome_log import ESTIMATED, Lately
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.llm.reply import Usage, without_keys
from optimsyn.recipe.recipe import ModelSpec

__all__ = ["Call", "LanguageModel", "run_sync"]

# A token is seldom shorter than this many characters of text; used only to set budget aside before a request.
_CHARACTERS_PER_TOKEN = 2


@dataclass(frozen=True)
class Call:
    """One question to a language model.

    Attributes:
        messages: Chat messages with `role` and `content`; a base model gets their contents, one after the other.
        schema: JSON schema that the reply must follow; honoured where the model is `structured`.
        schema_name: The schema's name, which some services show to the model.
        temperature: None: the model's own from the recipe.
        max_tokens: Longest reply in tokens; None: the model's own.
        seed: Seed of the sampling, for services that take one. Calls that differ only in it get different replies.
        stop: The reply ends before the first of these.
        roomier: Its reply has been cut before, and `max_tokens` is more than the recipe asks for; a service that takes
            no cap as high as that has not failed. Not part of what is asked.
    """

    messages: tuple[dict[str, str], ...]
    schema: dict[str, Any] | None = None
    schema_name: str = "reply"
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    roomier: bool = False

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("a call needs at least one message")

    @property
    def prompt(self) -> str:
        """The text of all messages, one after the other."""
        return "\n\n".join(message["content"] for message in self.messages)

    @classmethod
    def of(cls, prompt: str | Sequence[Mapping[str, str]], **parameters: Any) -> Call:
        """A call with one user message, or with the given messages; `parameters` are this class's fields."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        return cls(messages=tuple(messages), **parameters)


# Asks and reads, for a program of DSPy: gives the reply, or None where nothing could be read.
Hear = Callable[[Call], Awaitable[Reply | None]]

# A waiting request looks this often whether there is still reason to wait.
_PAUSE_S = 0.5
# More replies in a row than any limit on garbage counts.
_LATEST = 4096


class LanguageModel(ABC):
    """A language model of a recipe.

    `complete` may be awaited on any event loop and from many tasks at once: `spec.concurrency` requests are under way,
    the others wait. Equal calls under way at the same time are sent once.

    Attributes:
        spec: The model as the recipe describes it.
        name: Its name in the recipe.
        identity: What distinguishes it in the cache: name, weights, adapter; not the address where it is served.
        failure: The first error that stopped a call for good; libraries between here and a stage may swallow
            errors, so whoever drives them asks this afterwards (`raise_failure`).
        lately: What came of the latest requests.
        field: Its place in the recipe, for messages; empty where nobody has said.
    """

    def __init__(self, spec: ModelSpec, cache: ReplyCache | None, budget: Budget | None, *, identity: str) -> None:
        """Keeps what every kind of model has; concrete classes are made by `load_language_model`."""
        self.spec = spec
        self.name = spec.name
        self.identity = identity
        self.failure: OptimsynError | None = None
        self.lately = Lately()
        self.field = ""
        self._cache = cache
        self._budget = budget
        self._failures = 0
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._latest: deque[str] = deque(maxlen=_LATEST)
        self._places: asyncio.Semaphore | None = None

    @property
    def chat(self) -> bool:
        """True for models that follow chat messages, False for base models, which continue one plain text."""
        return True

    @property
    def structured(self) -> bool:
        """True when a call's schema is sent to the service, so that the reply follows it."""
        return False

    @property
    def asked_besides(self) -> dict[str, Any]:
        """What the recipe has a service asked beside a call: the fields that say something.

        Those that say nothing are left out, so that a reply bought before there were such fields is still found.
        """
        said = {
            "top_p": self.spec.top_p,
            "reasoning_effort": self.spec.reasoning_effort,
            "chat_template_kwargs": self.spec.chat_template_kwargs or None,
            "extra": self.spec.extra or None,
            "send_seed": None if self.spec.send_seed else False,
        }
        return {name: value for name, value in said.items() if value is not None}

    @property
    def concurrency(self) -> int:
        """Requests that are under way at once; giving the model more of them only makes them wait."""
        return self.spec.concurrency

    @abstractmethod
    async def _request(self, call: Call) -> Reply:
        """Gets one reply from the service, retrying what is worth retrying; runs on the request loop.

        Raises:
            ServiceError: The service failed for good.
            ModelError: A local model cannot answer.
        """

    def key(self, call: Call) -> str:
        """The cache key of a call, in hex: equal for calls that ask this model for the same thing."""
        return digest_of(self._asked(call), 64)

    async def complete(self, call: Call) -> Reply:
        """Answers a call: from the cache, or from the service within the budget, and then into the cache.

        Raises:
            ServiceError: The service failed for good; everything bought so far is in the cache.
            BudgetError: A cap of the recipe was reached; nothing was sent.
            ModelError: A local model cannot be loaded or cannot take the call.
            DataError: A reply could not be written (a full disk, for example); from then on nothing is sent.
        """
        call = self._filled(call)
        key = self.key(call)
        if self._cache is not None and (kept := self._cache.get(key)) is not None:
            self._latest.append(key)
            return kept
        reply = await REQUESTS.run(self._joined(key, call))
        self._latest.append(key)
        return reply

    def set_aside_latest(self, count: int) -> None:
        """Keeps the last `count` replies from being used again, because this service has sent only garbage.

        They stay in the cache with what they cost; the same calls are sent again once the service has been fixed.
        """
        self.set_aside(list(self._latest)[-count:])
        self._latest.clear()

    def set_aside(self, keys: Sequence[str]) -> None:
        """Keeps the replies to these calls from being used again; they stay in the cache with what they cost."""
        if self._cache is not None:
            self._cache.set_aside(keys)

    def note(self, role: str, key: str, outcome: Outcome, *, asked_again: bool = False) -> None:
        """Puts on record what came of a call; see `OutcomeLog.note`."""
        if self._cache is not None:
            self._cache.outcomes.note(key, role, outcome, asked_again=asked_again)

    def more_room(self, call: Call, reply: Reply) -> Call | None:
        """The same call with more room for its reply, which was cut; None where the recipe or the model has no more.

        Args:
            call: The call.
            reply: What came of it.
        """
        now = call.max_tokens or self.spec.max_tokens
        most = 2 * now
        if self.spec.max_tokens_again is not None:
            most = min(most, self.spec.max_tokens_again) if now != self.spec.max_tokens else self.spec.max_tokens_again
        longest = self._longest_reply(reply)
        if longest is not None:
            most = min(most, longest)
        return replace(call, max_tokens=most, roomier=True) if most > now else None

    def _longest_reply(self, reply: Reply) -> int | None:
        """Tokens of the longest reply that the model can give to a prompt like this reply's; None: not known."""
        return None

    def complete_sync(self, call: Call) -> Reply:
        """The same from synchronous code."""
        return run_sync(self.complete(call))

    def raise_failure(self) -> None:
        """Raises the first failure of this model, if there was one, and forgets it."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    async def aclose(self) -> None:  # noqa: B027 - most models hold nothing
        """Lets go of connections and memory."""

    def close(self) -> None:
        """The same from synchronous code."""
        run_sync(self.aclose())

    def _may_send(self) -> None:
        """Asked before each further try of a request.

        Raises:
            DataError: What is bought could not be kept.
        """
        if self._cache is not None:
            self._cache.ready()

    async def _pause(self, seconds: float) -> None:
        """Waits before a further try, no longer than there is reason to.

        Raises:
            DataError: As `_may_send`, as soon as that is so.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _PAUSE_S))
            self._may_send()

    async def _joined(self, key: str, call: Call) -> Reply:
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(self._bought(key, call))
            if self.highest_price(1, 1) != 0.0:
                REQUESTS.follow(task)
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        # Shielded: a caller that gives up must not waste a request that is already being paid for.
        return await asyncio.shield(task)

    def _forget(self, key: str, task: asyncio.Task[Reply]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # marks it as seen, should every caller have given up

    async def _bought(self, key: str, call: Call) -> Reply:
        failures = self._failures
        if self._places is None:
            self._places = asyncio.Semaphore(self.concurrency)
        async with self._places:
            # A service that failed for good while this call waited would fail it the same way, only later.
            if self._failures > failures and self.failure is not None:
                raise self.failure
            # An equal call may have been answered between this one's look into the cache and its turn.
            if self._cache is not None and (kept := self._cache.get(key)) is not None:
                return kept
            try:
                self._may_send()
                async with self._room(call):
                    reply = without_keys(await self._request(call), [message["content"] for message in call.messages])
                    # Kept before the reservation ends, so that the budget never loses sight of it.
                    if self._cache is not None:
                        # In a thread: a disk that hesitates must not keep the other replies from being received.
                        await asyncio.to_thread(self._cache.put, key, reply, self._asked(call))
                        if reply.estimated:
                            self._cache.outcomes.count(key, ESTIMATED)
                    return reply
            except ReplyError:
                raise  # the service answered: it takes no reply as long as this one was asked for
            except OptimsynError as error:
                self._failures += 1
                if self.failure is None:
                    self.failure = error
                raise

    @asynccontextmanager
    async def _room(self, call: Call) -> AsyncIterator[None]:
        """Room in the budget, where there is one, while a call is under way.

        Raises:
            BudgetError: The call could pass a cap; nothing has been sent.
        """
        with nullcontext() if self._budget is None else self.reserved(self._budget, call):
            yield

    def _filled(self, call: Call) -> Call:
        update: dict[str, Any] = {}
        if call.temperature is None:
            update["temperature"] = self.spec.temperature
        if call.max_tokens is None:
            update["max_tokens"] = self.spec.max_tokens
        return replace(call, **update) if update else call

    def _asked(self, call: Call) -> dict[str, Any]:
        filled = self._filled(call)
        asked: dict[str, Any] = {
            "model": self.identity,
            "messages": list(filled.messages),
            "schema": filled.schema,
            "temperature": filled.temperature,
            "max_tokens": filled.max_tokens,
            "seed": filled.seed,
            "stop": list(filled.stop),
        }
        return asked | self.asked_besides

    def reserved(self, budget: Budget, call: Call) -> AbstractContextManager[None]:
        """Room in the budget for the most that a call may use and cost."""
        prompt, reply = self._most_tokens(call)
        price = self.highest_price(prompt, reply)
        most = Usage(replies=1, input_tokens=prompt, output_tokens=reply, cost_usd=price or 0.0, unpriced=price is None)
        return budget.reserved(most)

    def _most_tokens(self, call: Call) -> tuple[int, int]:
        """The most tokens that prompt and reply of a call may have."""
        prompt = sum(len(message["content"]) for message in call.messages) // _CHARACTERS_PER_TOKEN
        return prompt, call.max_tokens or self.spec.max_tokens

    def highest_price(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """US dollars for a prompt and a reply of this length; None when the price is not known before."""
        return 0.0
