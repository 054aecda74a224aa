"""Log-probabilities of given texts, from a vLLM server that speaks OpenAI's protocol.

Two of vLLM's additions to that protocol are used: `POST /v1/load_lora_adapter` (the server runs with `--enable-lora`
and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True), and `prompt_logprobs` of `POST /v1/completions`, whose reply holds, in
`choices[0].prompt_logprobs`, None for the first token and then `{token id: {"logprob": ...}}` for each further one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from optimsyn.base.environment import variable
from optimsyn.base.errors import ServiceError
from optimsyn.base.secrets.redaction import redact
from optimsyn.llm.hosted.failures import LONGEST_WAIT_S, NO_CONNECTION, NO_KEY, Failure, backoff_s, refused, timed_out

_log = logging.getLogger(__name__)
_LORA_CURE = (
    "start the server with --enable-lora, --max-lora-rank as large as the adapters' rank and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and see that it can read the folder"
)


class PromptLogprobs:
    """An asynchronous client, for use with `async with`.

    Rate limits, time-outs, lost connections and server errors are retried with jittered exponential backoff or after
    `Retry-After`; a wrong key, an unknown adapter or a refused request fails at once.

    Args:
        api_base: Address of the API, which usually ends in /v1.
        api_key_env: Environment variable that holds the key; None for a server that asks for none.
        concurrency: The most requests at once.
        retries: Retries of a failed request.
        timeout_s: Time limit for one try.

    Raises:
        ServiceError: `api_key_env` names a variable that is not set.

    Example:
        >>> async with PromptLogprobs("http://localhost:8000/v1") as client:         # doctest: +SKIP
        ...     await client.logprobs("model", [2, 651, 6996])
    """

    def __init__(
        self,
        api_base: str,
        *,
        api_key_env: str | None = None,
        concurrency: int = 8,
        retries: int = 3,
        timeout_s: float = 120.0,
    ) -> None:
        key = variable(api_key_env) if api_key_env is not None else NO_KEY
        if not key:
            raise ServiceError(
                f"the server's key is expected in the environment variable {api_key_env}, which is not set; run "
                f"`export {api_key_env}=...`"
            )
        self.api_base = api_base.rstrip("/")
        self._key = key
        self._concurrency = concurrency
        self._retries = retries
        self._timeout_s = timeout_s
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> PromptLogprobs:
        self._slots = asyncio.Semaphore(self._concurrency)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=self._timeout_s,
            limits=httpx.Limits(max_connections=self._concurrency),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def load_adapter(self, name: str, folder: Path | str) -> None:
        """Has the server load a peft folder, unless it has an adapter of this name.

        Args:
            name: The model name of later requests.
            folder: The folder's path on the server.

        Raises:
            ServiceError: The server refused or failed.
        """
        reply = await self._post("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if isinstance(reply, Failure):
            if "already" in reply.what and "loaded" in reply.what:
                return
            if not reply.retry:
                reply = Failure(f"the adapter was not loaded: {reply.what}", _LORA_CURE, retry=False)
            raise self._error(name, reply)

    async def logprobs(self, model: str, input_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token given those before it.

        Args:
            model: An adapter's name, or the served model's.
            input_ids: At least two tokens.

        Returns:
            One number a token from the second on: n - 1 of them.

        Raises:
            ServiceError: The server refused or failed, or the reply is not about these tokens.
        """
        ids = [int(token) for token in input_ids]
        # prompt_logprobs 0 is enough (the prompt's own tokens are always included), but some versions take it for
        # "none"; many versions refuse max_tokens 0.
        body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1}
        reply = await self._post("/completions", body)
        if isinstance(reply, Failure):
            raise self._error(model, reply)
        logprobs = _read(reply, ids)
        if isinstance(logprobs, Failure):
            raise self._error(model, logprobs)
        return logprobs

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The reply's JSON (or text, if it is not JSON), or the last failure."""
        async with self._slots:
            failures = 0
            while True:
                result = await self._try(path, body)
                if not isinstance(result, Failure) or not result.retry or failures == self._retries:
                    return result
                wait = result.wait_s if result.wait_s is not None else backoff_s(failures)
                if wait > LONGEST_WAIT_S:
                    return result
                _log.info("%s%s: %s; try %d in %.1f s", self.api_base, path, result.what, failures + 2, wait)
                await asyncio.sleep(wait)
                failures += 1

    async def _try(self, path: str, body: dict[str, Any]) -> Any:
        if self._client is None:
            raise RuntimeError("PromptLogprobs is used outside of `async with`")
        try:
            response = await self._client.post(self.api_base + path, json=body)
        except httpx.TimeoutException:
            return timed_out(self._timeout_s)
        except httpx.InvalidURL as error:
            return Failure(f"the address is invalid ({error})", "correct api_base", retry=False)
        except httpx.RequestError:
            return NO_CONNECTION
        if response.status_code >= 400:
            return refused(response.status_code, response.text, response.headers, self._key)
        try:
            return response.json()
        except ValueError:
            return response.text

    def _error(self, model: str, failure: Failure) -> ServiceError:
        return ServiceError(
            redact(
                f"model {model} at {self.api_base}: {failure.what}. What to do: {failure.cure}",
                extra_values=[self._key],
            )
        )


def _read(reply: Any, ids: list[int]) -> list[float] | Failure:
    try:
        rows = reply["choices"][0]["prompt_logprobs"]
    except (KeyError, IndexError, TypeError):
        rows = None
    if not isinstance(rows, list):
        return Failure(
            "the reply holds no choices[0].prompt_logprobs",
            "use a server that gives log-probabilities of the prompt, such as vLLM 0.6 or newer",
            retry=False,
        )
    if len(rows) != len(ids):
        return Failure(
            f"the reply is about {len(rows)} tokens, the request was about {len(ids)}",
            "check that the server uses the token ids unchanged and cuts no prompt",
            retry=False,
        )
    values = []
    for place in range(1, len(ids)):
        row = rows[place]
        entry = row.get(str(ids[place])) if isinstance(row, dict) else None
        value = entry.get("logprob") if isinstance(entry, dict) else None
        if not isinstance(value, int | float):
            return Failure(
                f"the reply has no log-probability of token {ids[place]} at place {place}",
                "serve the model whose tokenizer made these ids",
                retry=False,
            )
        values.append(float(value))
    return values
