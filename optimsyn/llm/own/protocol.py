"""The protocol of a custom generator."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from optimsyn.base.extensions import GENERATORS, methods

if TYPE_CHECKING:
    from optimsyn.llm.language_model import Call
    from optimsyn.llm.reply import Reply


class Generator(Protocol):
    """Answers calls in place of a language model.

    A recipe names a class, which is created with the recipe's `settings` as keyword arguments, or an object. optimsyn
    calls it like a hosted model: through the run's reply cache, within its caps, with `concurrency` calls at once. So
    it keeps no replies, counts nothing and writes no files of the run.

    Whatever its replies depend on beside the call must be in its source or its settings: both are part of the cache
    key. A registered object, which gets no settings from a recipe, may have an attribute `settings` that JSON can hold.
    """

    def complete(self, call: Call) -> Reply | str | Awaitable[Reply | str]:
        """Answers one call.

        A plain method is called in `concurrency` threads (set that to 1 if it is not thread-safe); an `async def`
        method is awaited on an event loop.

        Args:
            call: `call.prompt` is all its text; `call.messages` has the same as chat messages, `call.schema` the JSON
                schema for the reply, `call.seed` the sampling seed (calls that differ only in it should get different
                replies), `call.max_tokens` and `call.temperature` the recipe's values.

        Returns:
            The text; or a `Reply`, with tokens and cost where they are known, `finish_reason="length"` where the text
            was cut, and `refusal` where the answer was refused.

        Raises:
            Exception: Network and server errors (OSError, TimeoutError, exceptions of a library) are retried `retries`
                times. Bugs (TypeError, KeyError, ValueError) stop the run at once. Either way all earlier replies are
                kept.
        """


PROBLEM = methods(["complete"], "a generator has one, which takes a call and gives its text or a Reply", "a call")
GENERATORS.provide({}, PROBLEM)


def settings_problem(part: object, settings: Mapping[str, Any]) -> str | None:
    """Why a generator cannot take a recipe's settings; None when it can."""
    if not isinstance(part, type):
        return "it is an object and not a class, which takes no settings; name its class" if settings else None
    try:
        inspect.signature(part).bind(**settings)
    except TypeError as error:
        return f"{part.__name__} cannot be made with these settings ({error})"
    except ValueError:  # a class without a readable signature
        return None
    return None
