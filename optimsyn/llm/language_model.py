"""A language model, local or hosted: one interface, with cache, budget and error handling."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

from optimsyn.base.errors import OptimsynError, Outcome, ReplyError
from optimsyn.base.event_loops import REQUESTS, run_sync
from optimsyn.base.identity import digest_of
from optimsyn.llm.outcome_log import ESTIMATED, Lately
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.llm.reply import Usage, hear, without_keys
from optimsyn.recipe.recipe import ModelSpec

__all__ = ["Call", "LanguageModel", "Manner", "run_sync"]

Manner = Literal["chat", "plain", "writer"]
"""How a model is addressed; see `LanguageModel.manner`."""

# A token is rarely shorter than this; used only to reserve budget before a request.
_CHARACTERS_PER_TOKEN = 2


@dataclass(frozen=True)
class Call:
    """One request to a language model.

    Attributes:
        messages: Chat messages with `role` and `content`; a base model gets their contents joined.
        schema: JSON schema for the reply; used where the model is `structured`.
        schema_name: The schema's name, which some services show to the model.
        temperature: None: the recipe's value.
        max_tokens: Longest reply in tokens; None: the recipe's value.
        seed: Sampling seed, for services that take one. Calls that differ only in it get different replies.
        stop: Stop sequences.
        roomier: A retry after a cut reply, with `max_tokens` above the recipe's; a service that rejects the higher cap
            has not failed. Not part of the cache key.
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
        """The joined text of all messages."""
        return "\n\n".join(message["content"] for message in self.messages)

    @classmethod
    def of(cls, prompt: str | Sequence[Mapping[str, str]], **parameters: Any) -> Call:
        """A call with one user message, or with the given messages; `parameters` are this class's fields."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        return cls(messages=tuple(messages), **parameters)


# Asks the model for a DSPy program; returns the reply, or None where it could not be read.
Hear = Callable[[Call], Awaitable[Reply | None]]

# A waiting request checks this often whether to stop.
_PAUSE_S = 0.5
# More than any limit on consecutive bad replies.
_LATEST = 4096


class LanguageModel(ABC):
    """A language model of a recipe.

    `complete` may be awaited on any event loop and from many tasks: at most `spec.concurrency` requests run at once.
    Equal calls that run at the same time are sent once.

    Attributes:
        spec: The model as the recipe describes it.
        name: Its name in the recipe.
        identity: Its part of the cache key: name, weights, adapter; not the address where it is served.
        failure: The first permanent error. Libraries in between may swallow errors, so their caller checks this
            afterwards (`raise_failure`).
        lately: Outcomes of the latest requests.
        field: Its field in the recipe, for messages; may be empty.
        at_work: Entered while a request is under way.
    """

    def __init__(self, spec: ModelSpec, cache: ReplyCache | None, budget: Budget | None, *, identity: str) -> None:
        """The state common to all models; `load_language_model` creates them."""
        self.spec = spec
        self.name = spec.name
        self.identity = identity
        self.failure: OptimsynError | None = None
        self.lately = Lately()
        self.field = ""
        self.at_work: Callable[[], AbstractContextManager[None]] = nullcontext
        self._cache = cache
        self._budget = budget
        self._failures = 0
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._latest: deque[str] = deque(maxlen=_LATEST)
        self._places: asyncio.Semaphore | None = None

    @property
    def chat(self) -> bool:
        """True for chat models, False for base models, which continue a plain text."""
        return True

    @property
    def writer(self) -> bool:
        """True for the embedded model, whose adapter was trained on the prompts of rubrics and pairs."""
        return False

    @property
    def manner(self) -> Manner:
        """How it is asked: in a chat, as a plain base model with worked examples, or in the writer's prompts."""
        return "writer" if self.writer else "chat" if self.chat else "plain"

    @property
    def structured(self) -> bool:
        """True when a call's schema is sent to the service."""
        return False

    @property
    def asked_besides(self) -> dict[str, Any]:
        """The recipe's further request parameters, without unset ones, so that older cache keys stay valid."""
        parameters = {
            "top_p": self.spec.top_p,
            "reasoning_effort": self.spec.reasoning_effort,
            "chat_template_kwargs": self.spec.chat_template_kwargs or None,
            "extra": self.spec.extra or None,
            "send_seed": None if self.spec.send_seed else False,
        }
        return {name: value for name, value in parameters.items() if value is not None}

    @property
    def concurrency(self) -> int:
        """The most requests at once; further ones wait."""
        return self.spec.concurrency

    @abstractmethod
    async def _request(self, call: Call) -> Reply:
        """Gets one reply from the service, with retries; runs on the request loop.

        Raises:
            ServiceError: The service failed permanently.
            ModelError: A local model cannot answer.
        """

    def key(self, call: Call) -> str:
        """The cache key of a call, in hex."""
        return digest_of(self._key_parameters(call), 64)

    async def complete(self, call: Call) -> Reply:
        """Answers a call from the cache, or from the service within the budget; new replies are cached.

        Raises:
            ServiceError: The service failed permanently; everything bought so far is in the cache.
            BudgetError: A cap of the recipe was reached; nothing was sent.
            ModelError: A local model cannot be loaded or cannot take the call.
            DataError: A reply could not be written (a full disk, for example); nothing more is sent.
        """
        call = self._with_defaults(call)
        key = self.key(call)
        if self._cache is not None and (cached := self._cache.get(key)) is not None:
            self._latest.append(key)
            return hear(cached)
        reply = await REQUESTS.run(self._shared(key, call))
        self._latest.append(key)
        return hear(reply)

    def set_aside_latest(self, count: int) -> None:
        """Keeps the last `count` replies, all of them unusable, from being used again.

        They stay in the cache with their cost; the same calls are sent again later.
        """
        self.set_aside(list(self._latest)[-count:])
        self._latest.clear()

    def set_aside(self, keys: Sequence[str]) -> None:
        """Keeps the replies to these calls from being used again; they stay in the cache with their cost."""
        if self._cache is not None:
            self._cache.set_aside(keys)

    def note(self, role: str, key: str, outcome: Outcome, *, asked_again: bool = False) -> None:
        """Records the outcome of a call; see `OutcomeLog.note`."""
        if self._cache is not None:
            self._cache.outcomes.note(key, role, outcome, asked_again=asked_again)

    def more_room(self, call: Call, reply: Reply) -> Call | None:
        """The same call with a larger `max_tokens`; None where recipe or model allow no more.

        Args:
            call: The call.
            reply: Its reply, which was cut.
        """
        before = call.max_tokens or self.spec.max_tokens
        cap = self.spec.max_tokens_again
        most = 2 * before
        if cap is not None:
            most = min(most, cap) if before != self.spec.max_tokens else cap
        longest = self._longest_reply(reply)
        if longest is not None:
            most = min(most, longest)
        return replace(call, max_tokens=most, roomier=True) if most > before else None

    def _longest_reply(self, reply: Reply) -> int | None:
        """Tokens of the longest possible reply to this reply's prompt; None: unknown."""
        return None

    def complete_sync(self, call: Call) -> Reply:
        """`complete` for synchronous code."""
        return run_sync(self.complete(call))

    def raise_failure(self) -> None:
        """Raises and clears the first failure of this model, if there was one."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    async def aclose(self) -> None:  # noqa: B027 - most models hold nothing
        """Frees connections and memory."""

    def close(self) -> None:
        """`aclose` for synchronous code."""
        run_sync(self.aclose())

    def _may_send(self) -> None:
        """Checked before each retry.

        Raises:
            DataError: A reply could not be kept.
        """
        if self._cache is not None:
            self._cache.ready()

    async def _pause(self, seconds: float) -> None:
        """Waits before a retry.

        Raises:
            DataError: As `_may_send`, as soon as it does.
        """
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            await asyncio.sleep(min(remaining, _PAUSE_S))
            self._may_send()

    async def _shared(self, key: str, call: Call) -> Reply:
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(self._buy(key, call))
            if self.highest_price(1, 1) != 0.0:
                REQUESTS.follow(task)
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        # Shielded: a caller that gives up must not waste a paid request.
        return await asyncio.shield(task)

    def _forget(self, key: str, task: asyncio.Task[Reply]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # marks it as retrieved, in case every caller has given up

    async def _buy(self, key: str, call: Call) -> Reply:
        failures = self._failures
        if self._places is None:
            self._places = asyncio.Semaphore(self.concurrency)
        async with self._places:
            # If the service failed permanently while this call waited, fail at once.
            if self._failures > failures and self.failure is not None:
                raise self.failure
            # An equal call may have been answered while this one waited.
            if self._cache is not None and (cached := self._cache.get(key)) is not None:
                return cached
            try:
                self._may_send()
                async with self._reserve_budget(call):
                    with self.at_work():
                        reply = await self._request(call)
                    reply = without_keys(reply, [message["content"] for message in call.messages])
                    # Written before the reservation ends, so that the budget always counts it.
                    if self._cache is not None:
                        # In a thread: a slow disk must not block the other replies.
                        await asyncio.to_thread(self._cache.put, key, reply, self._key_parameters(call))
                        if reply.estimated:
                            self._cache.outcomes.count(key, ESTIMATED)
                    return reply
            except ReplyError:
                raise  # the service works: it only rejects such a long reply
            except OptimsynError as error:
                self._failures += 1
                if self.failure is None:
                    self.failure = error
                raise

    @asynccontextmanager
    async def _reserve_budget(self, call: Call) -> AsyncIterator[None]:
        """Reserves budget, if there is one, while a call is under way.

        Raises:
            BudgetError: The call could pass a cap; nothing has been sent.
        """
        with nullcontext() if self._budget is None else self.reserved(self._budget, call):
            yield

    def _with_defaults(self, call: Call) -> Call:
        update: dict[str, Any] = {}
        if call.temperature is None:
            update["temperature"] = self.spec.temperature
        if call.max_tokens is None:
            update["max_tokens"] = self.spec.max_tokens
        return replace(call, **update) if update else call

    def _key_parameters(self, call: Call) -> dict[str, Any]:
        filled = self._with_defaults(call)
        parameters: dict[str, Any] = {
            "model": self.identity,
            "messages": list(filled.messages),
            "schema": filled.schema,
            "temperature": filled.temperature,
            "max_tokens": filled.max_tokens,
            "seed": filled.seed,
            "stop": list(filled.stop),
        }
        return parameters | self.asked_besides

    def reserved(self, budget: Budget, call: Call) -> AbstractContextManager[None]:
        """Reserves the most that a call may use and cost."""
        prompt, reply = self._most_tokens(call)
        price = self.highest_price(prompt, reply)
        most = Usage(replies=1, input_tokens=prompt, output_tokens=reply, cost_usd=price or 0.0, unpriced=price is None)
        return budget.reserved(most)

    def _most_tokens(self, call: Call) -> tuple[int, int]:
        """The most tokens that prompt and reply of a call may have."""
        prompt = sum(len(message["content"]) for message in call.messages) // _CHARACTERS_PER_TOKEN
        return prompt, call.max_tokens or self.spec.max_tokens

    def highest_price(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """US dollars for a prompt and a reply of this length; None when the price is unknown."""
        return 0.0
