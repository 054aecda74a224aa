"""What a generator of one's own has to be."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from optimsyn.base.extensions import GENERATORS, methods

if TYPE_CHECKING:
    from optimsyn.llm.language_model import Call
    from optimsyn.llm.reply import Reply


class Generator(Protocol):
    """Answers calls, in the place of a language model that a recipe would name.

    A recipe names a class, which is made with the recipe's `settings` as keyword arguments, or an object. It is asked
    by optimsyn as a hosted model is: through the run's cache of replies, within its caps, `concurrency` calls at once.
    So it keeps no replies, counts nothing and writes no files of the run.

    What its replies depend on beside the call has to be in its source or among its settings: both are part of the
    name under which a reply is kept. A registered object, which has no settings from a recipe, may say them itself, as
    an attribute `settings` that JSON can hold.
    """

    def complete(self, call: Call) -> Reply | str | Awaitable[Reply | str]:
        """Answers one call.

        A plain method is called in threads of its own, `concurrency` of them at once (set that to 1 for what is not
        safe in several threads); one written with `async def` is awaited on an event loop.

        Args:
            call: `call.prompt` is all its text; `call.messages` has the same as chat messages, `call.schema` the JSON
                schema that the reply should follow, `call.seed` the seed of the sampling (calls that differ only in it
                are to get different replies where chance has a say), `call.max_tokens` and `call.temperature` what the
                recipe says.

        Returns:
            The text; or a `Reply`, with tokens and cost where they are known, `finish_reason="length"` where the text
            was cut, and `refusal` where the answer was refused.

        Raises:
            Exception: What a network or a server can do (OSError, TimeoutError, exceptions of a library) is tried again
                `retries` times. Mistakes of the code (TypeError, KeyError, ValueError) stop the run at once. Either way
                everything that was answered before is kept.
        """


PROBLEM = methods(["complete"], "a generator has one, which takes a call and gives its text or a Reply")
GENERATORS.provide({}, PROBLEM)


def settings_problem(part: object, settings: Mapping[str, Any]) -> str | None:
    """Why a recipe's settings cannot be given to a generator; None when they can."""
    if not isinstance(part, type):
        return "it is an object and not a class, which takes no settings; name its class" if settings else None
    try:
        inspect.signature(part).bind(**settings)
    except TypeError as error:
        return f"{part.__name__} cannot be made with these settings ({error})"
    except ValueError:  # a class that does not say what it takes
        return None
    return None
