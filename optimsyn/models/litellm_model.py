"""Models behind an HTTP service: hosted ones and servers of one's own, through LiteLLM, and the embedded one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import httpx

from optimsyn.errors import ServiceError
from optimsyn.models.failures import (
    LONGEST_WAIT_S,
    NO_KEY,
    Failure,
    backoff_s,
    classified,
    no_reply,
    refused,
    timed_out,
)
from optimsyn.models.language_model import Call, LanguageModel
from optimsyn.models.names import LITELLM_PREFIXES
from optimsyn.models.replies import Budget, Reply, ReplyCache
from optimsyn.recipe import ModelSpec
from optimsyn.redaction import SHOWN_INSTEAD, redact

_log = logging.getLogger(__name__)

_EMPTY_RETRIES = 2


# Parameters below which a model is held to the passage, and how long a server may take to tell its size.
_SMALL = 1e9
_ASK_S = 5.0


class LiteLLMModel(LanguageModel):
    """A model behind an HTTP service.

    Rate limits, time-outs, lost connections, server errors and bodies that are not JSON are tried again
    `spec.retries` times, with growing, jittered waits or for as long as `Retry-After` says. A wrong key, an unknown
    model or a refused request fails at once. A reply is returned as it came: judging it is the reader's business.
    """

    def __init__(self, spec: ModelSpec, cache: ReplyCache | None = None, budget: Budget | None = None) -> None:
        """A model that nothing is sent to yet.

        Raises:
            ServiceError: `api_key_env` names a variable that is not set.
        """
        super().__init__(spec, cache, budget, identity=f"litellm:{spec.name}")
        if spec.api_key_env is not None and not os.environ.get(spec.api_key_env):
            raise ServiceError(
                f"model {spec.name}: its key is expected in the environment variable {spec.api_key_env}, which is "
                f"not set; run `export {spec.api_key_env}=...`"
            )
        self._schema_refused = False

    @property
    def structured(self) -> bool:
        """Whether schemas are sent: as the recipe says, else until the service refuses one."""
        if self.spec.structured_output is not None:
            return self.spec.structured_output
        if self._schema_refused:
            return False
        if self.spec.api_base is not None:
            return True  # most servers take one; the first refusal settles it
        return bool(_litellm().supports_response_schema(model=self._service_name()))

    @cached_property
    def small(self) -> bool:
        """Whether the server says that its model has under a billion parameters (llama.cpp does; most say nothing).

        A server that cannot be asked is not called small; the first real request will say what is wrong with it.
        """
        if self.spec.api_base is None:
            return False
        key = os.environ.get(self.spec.api_key_env or "OPENAI_API_KEY", NO_KEY)
        try:
            answer = httpx.get(
                f"{self.spec.api_base.rstrip('/')}/models",
                headers={"Authorization": f"Bearer {key}"},
                timeout=_ASK_S,
            ).json()
            sizes = [float(model["meta"]["n_params"]) for model in answer["data"] if model.get("meta")]
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return bool(sizes) and max(sizes) < _SMALL

    async def _address(self) -> tuple[str | None, str | None]:
        """Base address and key for the next try; None leaves them to LiteLLM."""
        key = os.environ.get(self.spec.api_key_env) if self.spec.api_key_env else None
        if key is None and self.spec.api_base is not None and not os.environ.get("OPENAI_API_KEY"):
            key = NO_KEY if self._service_name().startswith("openai/") else None
        return self.spec.api_base, key

    def _service_name(self) -> str:
        """The name for LiteLLM; a server of one's own speaks OpenAI's protocol unless the name says otherwise."""
        if self.spec.api_base is not None and self.name.split("/", 1)[0] not in LITELLM_PREFIXES:
            return f"openai/{self.name}"
        return self.name

    async def _request(self, call: Call) -> Reply:
        spent = Reply(text="")
        failures = 0
        empty = 0
        while True:
            self._may_send()
            base, key = await self._address()
            schema_sent = call.schema is not None and self.structured
            result = await self._try(call, base, key)
            if isinstance(result, Reply):
                spent = _together(spent, result)
                hopeless = result.finish_reason in ("length", "content_filter")
                if result.text.strip() or hopeless or empty >= min(_EMPTY_RETRIES, self.spec.retries):
                    return spent
                empty += 1
                if call.seed is not None:  # the same seed would be answered with the same nothing
                    call = replace(call, seed=call.seed + 1_000_003)
                continue
            if result.about_schema and schema_sent and self._may_drop_schema:
                if not self._schema_refused:
                    _log.warning("%s takes no JSON schema; its replies are read without one from now on", self.name)
                self._schema_refused = True
                continue
            if result.connection:
                await self._lost_connection()
            if not result.retry or failures >= self.spec.retries:
                raise self._error(result, failures + 1, base)
            wait = result.wait_s if result.wait_s is not None else backoff_s(failures)
            if wait > LONGEST_WAIT_S:
                asks = replace(result, what=f"{result.what}; it asks to wait {wait:.0f} seconds")
                raise self._error(asks, failures + 1, base)
            failures += 1
            _log.info("%s: %s; try %d in %.1f s", self.name, result.what, failures + 1, wait)
            await self._pause(wait)

    @property
    def _may_drop_schema(self) -> bool:
        """Whether a refused schema is left away; where the recipe asks for schemas, a refusal is a failure."""
        return self.spec.structured_output is None

    async def _lost_connection(self) -> None:
        """Called after a try that found nobody at the address."""

    async def _try(self, call: Call, base: str | None, key: str | None) -> Reply | Failure:
        litellm = _litellm()
        import openai

        started = time.monotonic()
        try:
            # `wait_for` as well: LiteLLM's time-out is per read, and a server that drips never meets it.
            response = await asyncio.wait_for(
                litellm.acompletion(**self._parameters(call, base, key)), self.spec.timeout_s + 5
            )
        except TimeoutError:
            return timed_out(self.spec.timeout_s)
        except openai.OpenAIError as error:  # what LiteLLM maps every failure of a service to
            return classified(error, key, self.spec.timeout_s)
        return self._reply(response, time.monotonic() - started, key)

    def _reply(self, response: Any, seconds: float, key: str | None) -> Reply | Failure:
        """What was answered, without the key that a service may repeat anywhere: a reply is kept in a file."""
        reply = _reply(response, seconds)
        if isinstance(reply, Failure):
            return reply
        names = [self.spec.api_key_env] if self.spec.api_key_env is not None else []

        def clean(text: str) -> str:
            return redact(text.replace(key, SHOWN_INSTEAD) if key and key != NO_KEY else text, names)

        said = {"text": reply.text, "model": reply.model, "finish_reason": reply.finish_reason}
        return reply.model_copy(update={field: clean(text) for field, text in said.items()})

    def _parameters(self, call: Call, base: str | None, key: str | None) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "model": self._service_name(),
            "messages": list(call.messages),
            "temperature": call.temperature,
            "max_tokens": call.max_tokens,
            "timeout": self.spec.timeout_s,
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": True,
        }
        if base is not None:
            parameters["api_base"] = base
        if key is not None:
            parameters["api_key"] = key
        if call.seed is not None:
            parameters["seed"] = call.seed
        if call.stop:
            parameters["stop"] = list(call.stop)
        if call.schema is not None and self.structured:
            parameters["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": call.schema_name, "schema": call.schema, "strict": True},
            }
        return parameters

    def _highest_price(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """By LiteLLM's list, which also prices the replies; an empty reply that is asked again can come on top."""
        prices = _litellm().model_cost
        entry = prices.get(self._service_name()) or prices.get(self._service_name().rpartition("/")[2])
        read, written = _dearest(entry or {}, "input"), _dearest(entry or {}, "output")
        return None if read is None or written is None else prompt_tokens * read + reply_tokens * written

    def _error(self, failure: Failure, tries: int, base: str | None) -> ServiceError:
        where = f" at {base}" if base else ""
        often = f" ({tries} tries)" if tries > 1 else ""
        return ServiceError(
            redact(
                f"model {self.name}{where}: {failure.what}{often}. Cure: {failure.cure}. Every reply so far is kept; "
                f"run again to continue"
            )
        )


class EmbeddedModel(LiteLLMModel):
    """The embedded model behind its shared server, started with the first call if none is running."""

    def __init__(self, spec: ModelSpec, cache: ReplyCache | None = None, budget: Budget | None = None) -> None:
        """A model whose server is not asked for yet."""
        super().__init__(spec, cache, budget)
        from optimsyn.models.embedded import gguf_sha256

        self.identity = f"embedded:{gguf_sha256()}"
        self._server: tuple[str, str] | None = None

    @property
    def chat(self) -> bool:
        """A base model: it wants one plain text to continue."""
        return False

    @property
    def structured(self) -> bool:
        """The server constrains replies to a schema, unless the recipe turns that off."""
        return self.spec.structured_output is not False

    @property
    def _may_drop_schema(self) -> bool:
        return False  # this server takes schemas, so a refused one is a mistake in the schema

    async def _address(self) -> tuple[str | None, str | None]:
        if self._server is None:
            from optimsyn.models.embedded import shared_server

            self._server = await asyncio.to_thread(shared_server)
        return self._server

    async def _try(self, call: Call, base: str | None, key: str | None) -> Reply | Failure:
        # This server needs nothing translated, and importing LiteLLM takes seconds in each process of a run.
        known = ("messages", "temperature", "max_tokens", "seed", "stop", "response_format")
        parameters = self._parameters(call, base, key)
        body = {name: parameters[name] for name in known if parameters.get(name) is not None}
        limit = self.spec.timeout_s
        started = time.monotonic()
        try:
            async with asyncio.timeout(limit + 5), httpx.AsyncClient(trust_env=False, timeout=limit) as client:
                response = await client.post(
                    f"{base}/chat/completions",
                    json={"model": self._service_name().partition("/")[2], **body},
                    headers={"Authorization": f"Bearer {key}"},
                )
        except (TimeoutError, httpx.TimeoutException):
            return timed_out(limit)
        except httpx.TransportError:
            return Failure("the connection failed", "`optimsyn doctor` says whether its server starts", connection=True)
        if response.status_code >= 400:
            return refused(response.status_code, response.text, response.headers, key)
        try:
            found = json.loads(response.text, object_hook=lambda item: SimpleNamespace(**item))
        except ValueError:
            return no_reply("the reply is not JSON")
        return self._reply(found, time.monotonic() - started, key)

    def _highest_price(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        return 0.0

    async def _lost_connection(self) -> None:
        # The process that owned the server may have ended; the next try looks for another or starts one.
        self._server = None

    def _service_name(self) -> str:
        from optimsyn.models.embedded import EMBEDDED_ID

        return f"openai/{EMBEDDED_ID}"


def _litellm() -> Any:
    """LiteLLM without its network look-ups, telemetry and chatter."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return litellm


def _dearest(entry: Mapping[str, Any], side: str) -> float | None:
    """The highest price of a token that a request of ours can meet: long prompts and reasoning may cost more."""
    starts = (f"{side}_cost_per_token", f"{side}_cost_per_reasoning_token")
    # Tiers that a request has to ask for, which ours do not.
    ends = ("_batches", "_flex", "_priority")
    prices = [
        float(price)
        for name, price in entry.items()
        if name.startswith(starts) and not name.endswith(ends) and isinstance(price, int | float)
    ]
    return max(prices, default=None)


def _reply(response: Any, seconds: float) -> Reply | Failure:
    choices = getattr(response, "choices", None)
    if not choices:
        return no_reply("the reply holds no choices")
    # A JSON body can carry half a surrogate pair, which no file can.
    text = (choices[0].message.content or "").encode("utf-8", "replace").decode("utf-8")
    usage = getattr(response, "usage", None)
    cost = (getattr(response, "_hidden_params", None) or {}).get("response_cost")
    reason = str(choices[0].finish_reason or "stop")
    return Reply(
        text=text,
        input_tokens=max(0, int(getattr(usage, "prompt_tokens", 0) or 0)),
        output_tokens=max(0, int(getattr(usage, "completion_tokens", 0) or 0)),
        cost_usd=float(cost or 0.0),
        model=str(getattr(response, "model", "") or ""),
        finish_reason=reason,
        seconds=seconds,
    )


def _together(before: Reply, last: Reply) -> Reply:
    """The last reply, with what the thrown-away ones before it used."""
    return last.model_copy(
        update={
            "input_tokens": before.input_tokens + last.input_tokens,
            "output_tokens": before.output_tokens + last.output_tokens,
            "cost_usd": before.cost_usd + last.cost_usd,
            "seconds": before.seconds + last.seconds,
        }
    )
