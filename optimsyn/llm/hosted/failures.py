"""Classifies failures of an HTTP service: message, cure, and whether and when to retry."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

from optimsyn.base.secrets.redaction import redact
from optimsyn.llm.hosted.refusals import CHANGE_WHAT_IS_NAMED, field_that_helps, is_about_schema, refused_parameters

# A run does not wait longer than this; it stops and can be resumed.
LONGEST_WAIT_S = 300.0
FIRST_WAIT_S = 0.5
# The key for servers that need none, because the OpenAI client requires one.
NO_KEY = "none"
_SHOWN_CHARACTERS = 300
# LiteLLM's advice about its own settings does not help with a recipe.
_LITELLM_ADVICE = re.compile(r"\s*(?:To drop|If you want to use these|Set drop_params|To use it)")
_CHECK_ADDRESS = "check that api_base is the address of an OpenAI-compatible API (it usually ends in /v1)"


@dataclass(frozen=True)
class Failure:
    """One failed try.

    Attributes:
        wait_s: Seconds that the service asked to wait.
        connection: The address did not answer.
        about_schema: The service may have refused the request because of its JSON schema.
        parameters: Parameters that the service says it does not take.
        answer: The service's message, shortened, without keys.
        names_nothing: It was refused, and its message names no field of a recipe.
    """

    what: str
    cure: str
    retry: bool = True
    wait_s: float | None = None
    connection: bool = False
    about_schema: bool = False
    parameters: frozenset[str] = frozenset()
    answer: str = ""
    names_nothing: bool = False


NO_CONNECTION = Failure(
    "the connection failed", "check that the server runs and that api_base is right", connection=True
)


def timed_out(timeout_s: float) -> Failure:
    """A try without a reply in time."""
    return Failure(
        f"no reply within {timeout_s:g} seconds",
        "check that the service is not overloaded, or raise the model's timeout_s",
    )


def no_reply(what: str) -> Failure:
    """A body that is not what the API promises."""
    return Failure(what, _CHECK_ADDRESS)


def classified(error: Exception, key: str | None, timeout_s: float) -> Failure:
    """Classifies an error that LiteLLM raised."""
    import openai

    answer = _message(str(getattr(error, "message", "") or error), key)
    status = getattr(error, "status_code", None)
    if isinstance(error, openai.APITimeoutError) or status == 408:
        return timed_out(timeout_s)
    # LiteLLM also reports failed connections and unreadable bodies as HTTP 500; only real replies have headers.
    answered = getattr(error, "litellm_response_headers", None) is not None
    if not answered and _is_connection(error):
        return NO_CONNECTION
    if type(error).__name__ == "UnsupportedParamsError":  # raised by LiteLLM itself: nothing was sent
        answer = f"LiteLLM: {_LITELLM_ADVICE.split(answer)[0].removeprefix('litellm.UnsupportedParamsError: ')}"
        return replace(_by_status(400, answer, None), answer=answer)
    if isinstance(status, int) and (answered or status < 500):
        return _by_status(status, answer, _headers(error))
    return no_reply(f"the reply was not what the API promises ({_shortened(answer)})")


def refused(status: int, text: str, headers: Mapping[str, str], key: str | None) -> Failure:
    """A plain HTTP reply with a status of 400 or more."""
    return _by_status(status, _message(text, key), headers)


def _by_status(status: int, full: str, headers: Mapping[str, str] | None) -> Failure:
    answer = _shortened(full)
    if status == 429:
        if "insufficient_quota" in answer or "billing" in answer.lower():
            return Failure(f"the account has no quota left ({answer})", "check the account's billing", retry=False)
        return Failure(
            "too many requests (HTTP 429)",
            "lower the model's concurrency or raise its retries",
            wait_s=_asked_wait(headers),
        )
    if status >= 500:
        return Failure(
            f"the service failed (HTTP {status}: {answer})",
            "check the server's log, or try again later",
            wait_s=_asked_wait(headers),
            about_schema=is_about_schema(status, full),
            answer=answer,
        )
    if status in (401, 403):
        return Failure(
            f"the key was refused (HTTP {status})",
            "set the environment variable with the right key; `api_key_env` in the recipe names which",
            retry=False,
        )
    if status == 402:
        return Failure(f"the account cannot pay (HTTP 402: {answer})", "check the account's billing", retry=False)
    if status == 404:
        return Failure(
            f"unknown model or address (HTTP 404: {answer})", "check the model's name and api_base", retry=False
        )
    cure = field_that_helps(full)
    return Failure(
        f"the request was refused (HTTP {status}: {answer})",
        cure or CHANGE_WHAT_IS_NAMED,
        retry=False,
        about_schema=is_about_schema(status, full),
        parameters=refused_parameters(full) if status in (400, 422) else frozenset(),
        answer=f"HTTP {status}: {answer}",
        names_nothing=cure is None,
    )


def _message(text: str, key: str | None) -> str:
    """A service's message on one line, without keys and LiteLLM's traceback."""
    text = " ".join(text.partition("Traceback (most recent call last)")[0].split())
    return redact(text, extra_values=[key] if key else [])


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."


def _is_connection(error: BaseException) -> bool:
    import httpx

    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError | httpx.TransportError) or str(current) == "Connection error.":
            return True
        current = current.__cause__ or current.__context__
    return False


def _headers(error: Exception) -> Mapping[str, str] | None:
    """Headers of the reply behind LiteLLM's error."""
    headers: Mapping[str, str] | None = getattr(getattr(error, "response", None), "headers", None) or getattr(
        error, "litellm_response_headers", None
    )
    return headers


def _asked_wait(headers: Mapping[str, str] | None) -> float | None:
    """Seconds that a service asks to wait (`Retry-After`: seconds or a date), or None."""
    value = (headers or {}).get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def backoff_s(failures: int) -> float:
    """Exponential backoff from half a second, with 50 % jitter so that callers do not retry all at once."""
    return min(FIRST_WAIT_S * 2.0**failures, 60.0) * random.uniform(0.5, 1.5)
