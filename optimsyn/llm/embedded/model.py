"""The embedded model behind its own server, which needs no LiteLLM."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import httpx

from optimsyn.llm.embedded import prompts as embedded_prompt
from optimsyn.llm.hosted.failures import Failure, no_reply, refused, timed_out
from optimsyn.llm.hosted.litellm_model import LiteLLMModel
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.recipe.recipe import ModelSpec


class EmbeddedModel(LiteLLMModel):
    """The embedded model behind its shared server, started with the first call if none is running."""

    def __init__(self, spec: ModelSpec, cache: ReplyCache | None = None, budget: Budget | None = None) -> None:
        """Creates the model without starting its server."""
        super().__init__(spec, cache, budget)
        from optimsyn.llm.embedded.server import gguf_sha256
        from optimsyn.llm.embedded.writer import adapter_fingerprint

        self.identity = f"embedded:{gguf_sha256()}+{adapter_fingerprint()}"
        self._server: tuple[str, str] | None = None

    @property
    def chat(self) -> bool:
        """False: a base model, which continues a plain text."""
        return False

    @property
    def writer(self) -> bool:
        """True: it is served with its adapter."""
        return True

    @property
    def structured(self) -> bool:
        """The server constrains replies to a call's schema, unless the recipe turns that off; the writer needs none."""
        return self.spec.structured_output is not False

    @property
    def _may_drop_schema(self) -> bool:
        return False  # this server takes schemas, so a refused one is a mistake in the schema

    @property
    def _adapts(self) -> bool:
        return False  # its server takes all parameters

    async def _address(self) -> tuple[str | None, str | None]:
        if self._server is None:
            from optimsyn.llm.embedded.server import shared_server

            self._server = await asyncio.to_thread(shared_server)
        return self._server

    async def _try(self, parameters: dict[str, Any], base: str | None, key: str | None) -> Reply | Failure:
        # This server needs no translation, and importing LiteLLM takes seconds in each process of a run.
        names = ("messages", "temperature", "max_tokens", "seed", "stop", "response_format")
        body = {name: parameters[name] for name in names if parameters.get(name) is not None}
        limit = self.spec.timeout_s
        started = time.monotonic()
        try:
            async with asyncio.timeout(limit + 5), httpx.AsyncClient(trust_env=False, timeout=limit) as client:
                response = await embedded_prompt.post(
                    client, str(base), str(key), {"model": self._service_name().partition("/")[2], **body}
                )
        except (TimeoutError, httpx.TimeoutException):
            return timed_out(limit)
        except httpx.TransportError:
            return Failure("the connection failed", "`optimsyn doctor` says whether its server starts", connection=True)
        if response.status_code >= 400:
            return refused(response.status_code, response.text, response.headers, key)
        try:
            chat = json.dumps(embedded_prompt.as_chat(json.loads(response.text)))
            completion = json.loads(chat, object_hook=lambda item: SimpleNamespace(**item))
        except ValueError:
            return no_reply("the reply is not JSON")
        return self._reply(completion, time.monotonic() - started, key, body)

    def highest_price(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """Zero: it runs on this machine."""
        return 0.0

    def _longest_reply(self, reply: Reply) -> int | None:
        return None  # its server ends a reply at the end of the context

    async def _lost_connection(self) -> None:
        # The server's process may have ended; the next try finds another server or starts one.
        self._server = None

    def _service_name(self) -> str:
        from optimsyn.llm.embedded.server import EMBEDDED_ID

        return f"openai/{EMBEDDED_ID}"
