"""A hosted model that uses its provider's batch API: the same requests and replies, at half the price.

LiteLLM builds each request as usual, but with our HTTP client, which intercepts the request, sends it in a batch and
returns the answer as if it came from the service. So parameters, errors, retries and replies are the same as elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx

from optimsyn.base.environment import SERVICE_KEYS, variable
from optimsyn.base.errors import BudgetError
from optimsyn.llm.hosted.batch_apis import RefusedError, Target
from optimsyn.llm.hosted.batches import BatchError, Batches
from optimsyn.llm.hosted.capabilities import service_provider
from optimsyn.llm.hosted.failures import NO_KEY, Failure
from optimsyn.llm.hosted.litellm_model import LiteLLMModel
from optimsyn.llm.language_model import Call, run_sync
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.recipe.recipe import ModelSpec

# OpenAI's and Anthropic's price for batches, as a share of the usual price.
BATCH_PRICE = 0.5
# A call that two batches have not answered is sent alone.
_BATCHES_A_CALL = 2
# Far above what a stage requests at once, so that all of it goes into the batch.
_NO_LIMIT = 1_000_000
_BASES = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
_FOREVER_S = 10 * 365 * 86400.0


@dataclass
class _CallInFlight:
    """One call on its way through LiteLLM.

    Attributes:
        batched: The current try goes into a batch.
        batches: How many batches it has been in.
        unanswered: The batch ended without an answer to it.
    """

    key: str
    batched: bool = False
    batches: int = 0
    failure: Failure | None = None
    unanswered: bool = False

    def begin(self) -> None:
        """Begins a try in a batch."""
        self.batched, self.failure, self.unanswered = True, None, False


_ASKED: ContextVar[_CallInFlight] = ContextVar("call")


class BatchedModel(LiteLLMModel):
    """A hosted model behind a batch API.

    Calls are gathered until no more arrive for a moment. A request without an answer (its batch expired) goes into
    another batch, then alone. `spec.concurrency` does not limit the calls of a batch; the budget does: calls that do
    not fit beside those under way wait for them.
    """

    def __init__(
        self, spec: ModelSpec, cache: ReplyCache | None = None, budget: Budget | None = None, *, batches: Batches
    ) -> None:
        super().__init__(spec, cache, budget)
        self._batches = batches
        self._sent: Counter[str] = Counter()
        self._held = 0
        self._held_usd = 0.0
        self._released = asyncio.Event()
        self._queue = asyncio.Lock()

    @property
    def concurrency(self) -> int:
        """No limit: all calls wait together."""
        return _NO_LIMIT

    @property
    def _longest_try_s(self) -> float:
        # Batches have their own time limit.
        return _FOREVER_S if _ASKED.get().batched else super()._longest_try_s

    def set_aside(self, keys: Sequence[str]) -> None:
        """As for every model; the replies are not read from their batches again either."""
        super().set_aside(keys)
        self._batches.forget(list(keys))

    async def _request(self, call: Call) -> Reply:
        _ASKED.set(_CallInFlight(self.key(call)))
        return await super()._request(call)

    async def _try(self, parameters: dict[str, Any], base: str | None, key: str | None) -> Reply | Failure:
        call = _ASKED.get()
        batched = {**parameters, "client": self._client(base, key)}
        while call.batches < _BATCHES_A_CALL:
            call.begin()
            result = await super()._try(batched, base, key)
            if call.failure is not None:
                return call.failure
            if not call.unanswered:
                return result
        call.batched = False
        return await super()._try(parameters, base, key)

    def _client(self, base: str | None, key: str | None) -> Any:
        """Our HTTP client in the form that LiteLLM expects for the provider."""
        if service_provider(self._service_name()) == "anthropic":
            from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

            handler = AsyncHTTPHandler()
            handler.client = self._http_client
            return handler
        import openai

        return openai.AsyncOpenAI(api_key=key, base_url=base, http_client=self._http_client, max_retries=0)

    @cached_property
    def _http_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=_Transport(self))

    def _reply(self, response: Any, seconds: float, key: str | None, sent: Mapping[str, Any]) -> Reply | Failure:
        reply = super()._reply(response, seconds, key, sent)
        if isinstance(reply, Failure) or not _ASKED.get().batched:
            return reply
        cost = None if reply.cost_usd is None else reply.cost_usd * BATCH_PRICE
        return reply.model_copy(update={"cost_usd": cost})

    def highest_price(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """The most a call can cost at the price of a batch."""
        price = super().highest_price(prompt_tokens, reply_tokens)
        return None if price is None else price * BATCH_PRICE

    @asynccontextmanager
    async def _reserve_budget(self, call: Call) -> AsyncIterator[None]:
        """Reserves budget; if the calls under way leave too little, waits until enough of them have ended."""
        if self._budget is None:
            yield
            return
        prompt, reply = self._most_tokens(call)
        price = self.highest_price(prompt, reply) or 0.0
        with ExitStack() as reservation:
            # One at a time, in order: thousands may wait, and each check costs a query.
            async with self._queue:
                while True:
                    try:
                        self._refuse_above_the_cap(self._budget, price)
                        reservation.enter_context(self.reserved(self._budget, call))
                        break
                    except BudgetError:
                        if not self._held:
                            raise
                        self._released.clear()
                        await self._released.wait()
            self._held += 1
            self._held_usd += price
            try:
                yield
            finally:
                self._held -= 1
                self._held_usd -= price
                reservation.close()
                self._released.set()

    def _refuse_above_the_cap(self, budget: Budget, price: float) -> None:
        """Counts calls under way as spent, because a whole batch could exceed a cap by far."""
        if budget.cost_usd is None or not self._held:
            return
        if budget.cache.totals().cost_usd + self._held_usd + price > budget.cost_usd:
            raise BudgetError("limits.cost_usd: the calls under way may use it up")

    async def answered(self, request: httpx.Request) -> httpx.Response:
        """Sends a request of LiteLLM in a batch, and returns its response.

        Raises:
            httpx.ReadError: There is no response; the call in flight records why.
        """
        call = _ASKED.get()
        body: dict[str, Any] = json.loads(await request.aread())
        digest = hashlib.sha256(json.dumps([call.key, body], sort_keys=True).encode()).hexdigest()
        name = self._name_of(digest)
        try:
            answer = await self._batches.ask(Target.of(request), name, call.key, body)
        except BatchError as error:
            call.failure = error.failure
            raise httpx.ReadError("no batch", request=request) from None
        self._sent[digest] += 1
        call.batches += 1
        if answer.unanswered:
            call.unanswered = True
            raise httpx.ReadError("no answer in the batch", request=request)
        headers = {"content-type": "application/json"}
        return httpx.Response(answer.status, text=answer.body, headers=headers, request=request)

    def _name_of(self, digest: str) -> str:
        """The id of a request: the same in every process, but a new one each time it is sent again."""
        first = self._sent[digest]
        tries = range(first, first + _BATCHES_A_CALL + 1)
        names = [hashlib.sha256(f"{digest} {number}".encode()).hexdigest() for number in tries]
        return next((name for name in names if self._batches.has(name)), names[0])


class _Transport(httpx.AsyncBaseTransport):
    """Answers requests through a model's batches."""

    def __init__(self, model: BatchedModel) -> None:
        self._model = model

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._model.answered(request)


def batch_api_problem(spec: ModelSpec) -> str | None:
    """Asks the service of a model with `batch: true`; returns why it cannot take batches, or None."""
    provider = "anthropic" if service_provider(spec.name) == "anthropic" else "openai"
    key = variable(spec.api_key_env or SERVICE_KEYS[provider][0]) or NO_KEY
    base = (spec.api_base or _BASES[provider]).rstrip("/")
    headers: tuple[tuple[str, str], ...]
    if provider == "anthropic":
        url = base if base.endswith("/messages") else f"{base}/v1/messages"
        headers = (("x-api-key", key), ("anthropic-version", "2023-06-01"))
    else:
        url, headers = f"{base}/chat/completions", (("authorization", f"Bearer {key}"),)
    try:
        run_sync(Target(url, headers).service.check())
    except RefusedError as error:
        return f"the service has no batch API for this key ({error}); remove `batch: true`"
    except httpx.TransportError as error:
        return f"the service's batch API cannot be reached ({type(error).__name__}); try again, or remove `batch: true`"
    return None
