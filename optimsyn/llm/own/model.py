"""A custom generator with the cache, caps and error handling of every other language model."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import logging
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from optimsyn.base.errors import OptimsynError, RecipeError, ServiceError
from optimsyn.base.extensions import GENERATORS
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.source_identity import source_identity
from optimsyn.llm.hosted.adaptation import Adaptation
from optimsyn.llm.hosted.capabilities import price_of
from optimsyn.llm.hosted.failures import backoff_s
from optimsyn.llm.hosted.service_memory import ServiceMemory
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.own.protocol import Generator, settings_problem
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.llm.token_counts import by_characters
from optimsyn.recipe.recipe import ModelSpec

_log = logging.getLogger(__name__)

# Bugs, which a retry would only repeat.
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)


class OwnModel(LanguageModel):
    """A generator that a recipe names by `plugin`.

    Args:
        spec: The model as the recipe describes it.
        cache: The reply cache; None: replies are not kept.
        budget: The run's cap.
        field: Its field in the recipe, for messages.

    Raises:
        RecipeError: There is no such generator, or it cannot be created.
    """

    def __init__(
        self, spec: ModelSpec, cache: ReplyCache | None = None, budget: Budget | None = None, field: str = ""
    ) -> None:
        assert spec.plugin is not None
        where = f"{field or 'models'}.plugin"
        part = GENERATORS.get(spec.plugin, where)
        self._generator = _create(part, spec, where)
        own = getattr(self._generator, "settings", None)
        facts = [source_identity(spec.plugin, part, where), spec.settings, own if isinstance(own, Mapping) else None]
        try:
            digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        except TypeError as error:
            raise RecipeError(f"{where}: the settings of {spec.plugin} cannot be written as JSON ({error})") from None
        super().__init__(spec, cache, budget, identity=f"own:{spec.plugin}:{digest}")
        memory = ServiceMemory() if cache is None else ServiceMemory.beside(cache.path)
        self._adaptation = Adaptation(self.name, redact(self.name), memory)
        self._threads: ThreadPoolExecutor | None = None

    @property
    def structured(self) -> bool:
        """Whether it gets the reply's schema: yes, unless the recipe turns that off."""
        return self.spec.structured_output is not False

    async def _request(self, call: Call) -> Reply:
        failures = 0
        while True:
            self._may_send()
            started = time.monotonic()
            try:
                answer = await asyncio.wait_for(self._complete_once(call), self.spec.timeout_s)
            except OptimsynError:
                raise
            except Exception as error:  # custom code may raise anything
                if isinstance(error, _MISTAKES) or failures >= self.spec.retries:
                    raise self._failed(error, failures + 1) from error
            else:
                return self._counted(answer, call, time.monotonic() - started)
            failures += 1
            _log.info("%s: no reply; try %d", self.name, failures + 1)
            await self._pause(backoff_s(failures - 1))

    async def _complete_once(self, call: Call) -> object:
        method = self._generator.complete
        if inspect.iscoroutinefunction(method):
            return await method(call)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix="generator")
        result: object = await asyncio.get_running_loop().run_in_executor(self._threads, method, call)
        return await result if inspect.isawaitable(result) else result

    def _counted(self, answer: object, call: Call, seconds: float) -> Reply:
        """The answer as a reply; tokens that the generator does not report are counted from the texts.

        Raises:
            ServiceError: It is neither a text nor a reply, or its tokens or cost are impossible.
        """
        reply = Reply(text=answer) if isinstance(answer, str) else answer
        if not isinstance(reply, Reply):
            raise self._odd(f"{type(answer).__name__}, which is neither a text nor a Reply")
        reported = reply.model_fields_set
        update: dict[str, Any] = {"model": reply.model or self.name, "seconds": reply.seconds or seconds}
        if not {"input_tokens", "output_tokens"} <= reported:
            update["input_tokens"] = reply.input_tokens or by_characters(call.prompt)
            update["output_tokens"] = reply.output_tokens or by_characters(reply.text + reply.reasoning)
            update["estimated"] = True
        reply = reply.model_copy(update=update)
        if "cost_usd" not in reported:
            price = price_of(self.spec)
            cost = None if price is None else price.cost(reply.input_tokens, reply.output_tokens)
            reply = reply.model_copy(update={"cost_usd": cost})
        if min(reply.input_tokens, reply.output_tokens) < 0:
            raise self._odd(f"{reply.input_tokens} tokens read and {reply.output_tokens} written")
        if reply.cost_usd is not None and not (math.isfinite(reply.cost_usd) and reply.cost_usd >= 0):
            raise self._odd(f"a cost of {reply.cost_usd} US dollars")
        if reply.cost_usd is None:
            self._adaptation.price_is_unknown("give `prices` in the recipe")
        return reply

    def _odd(self, what: str) -> ServiceError:
        return ServiceError(f"{self._where}: {self.name} gave {what}; fix its method `complete`")

    def _failed(self, error: Exception, tries: int) -> ServiceError:
        often = f" ({tries} tries)" if tries > 1 else ""
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError) and not str(error):
            what = f"no reply within {self.spec.timeout_s:g} seconds"
        return ServiceError(
            redact(
                f"{self._where}: {self.name} failed{often}: {what}. Fix it and run again to continue; every reply so "
                "far is kept, and is used again as long as its source does not change"
            )
        )

    @property
    def _where(self) -> str:
        return self.field or "models"

    def highest_price(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """By the recipe's prices."""
        price = price_of(self.spec)
        return None if price is None else price.cost(prompt_tokens, reply_tokens)

    async def aclose(self) -> None:
        """Ends its threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None


def _create(part: Any, spec: ModelSpec, where: str) -> Generator:
    problem = settings_problem(part, spec.settings)
    if problem is not None:
        raise RecipeError(f"{where.removesuffix('.plugin')}.settings: {problem}")
    if not isinstance(part, type):
        return cast("Generator", part)
    try:
        return cast("Generator", part(**spec.settings))
    except Exception as error:
        raise RecipeError(
            redact(f"{where}: {spec.plugin!r} cannot be made ({type(error).__name__}: {error})")
        ) from error
