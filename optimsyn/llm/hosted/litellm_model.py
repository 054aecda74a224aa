"""Models behind an HTTP service, hosted or on your own server, through LiteLLM."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from optimsyn.base.environment import LITELLM_LOCAL_MODEL_COST_MAP, OPENAI_KEY, set_default, variable
from optimsyn.base.errors import Outcome, ReplyError, ServiceError
from optimsyn.base.secrets.redaction import kept, redact
from optimsyn.llm.hosted.adaptation import Adaptation, schema_digest
from optimsyn.llm.hosted.capabilities import Abilities, abilities_of, highest_cost, listed, price_of
from optimsyn.llm.hosted.failures import LONGEST_WAIT_S, NO_KEY, Failure, backoff_s, classified, timed_out
from optimsyn.llm.hosted.refusals import what_to_leave_out
from optimsyn.llm.hosted.responses import exchange_of, from_json, reply_of, together
from optimsyn.llm.hosted.service_memory import LIMIT_NAMES, ServiceMemory
from optimsyn.llm.hosted.usage import Tokens, believable_cost, tokens_of
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.llm.token_counts import counter_of
from optimsyn.recipe.model_names import LITELLM_PREFIXES
from optimsyn.recipe.recipe import ModelSpec

_log = logging.getLogger(__name__)

_EMPTY_RETRIES = 2


class LiteLLMModel(LanguageModel):
    """A model behind an HTTP service.

    Rate limits, time-outs, lost connections, server errors and bodies that are not JSON are retried `spec.retries`
    times, with jittered exponential backoff or after `Retry-After`. A wrong key, an unknown model or a refused request
    fails at once. A reply is returned unchanged; `optimsyn.llm.reading` parses it.

    A refusal that names a parameter is no failure: from then on the parameter is left out or renamed. The same holds
    for a refused JSON schema. Each is reported once, and remembered for every process of the run.

    Attributes:
        schema_refusal: The service's message when it last refused a schema; empty: it has not.
    """

    def __init__(self, spec: ModelSpec, cache: ReplyCache | None = None, budget: Budget | None = None) -> None:
        """Creates the model without sending anything.

        Raises:
            ServiceError: `api_key_env` names a variable that is not set.
        """
        super().__init__(spec, cache, budget, identity=f"litellm:{spec.name}")
        if spec.api_key_env is not None and not variable(spec.api_key_env):
            raise ServiceError(
                f"model {spec.name}: its key is expected in the environment variable {spec.api_key_env}, which is "
                f"not set; run `export {spec.api_key_env}=...`"
            )
        memory = ServiceMemory() if cache is None else ServiceMemory.beside(cache.path)
        where = self.name if spec.api_base is None else f"{self.name} at {spec.api_base}"
        if spec.reasoning_effort is not None:  # some models take a temperature only without thinking
            where += f", reasoning_effort {spec.reasoning_effort}"
        self._adaptation = Adaptation(self.name, redact(where), memory)
        self._list_checked = False
        self.schema_refusal = ""

    def report_to(self, report: Callable[[str], None]) -> None:
        """Reports what is learned about the service to a callback instead of the log."""
        self._adaptation.report = report

    @property
    def abilities(self) -> Abilities:
        """What the model can do, as far as known now."""
        return abilities_of(self.spec, self._adaptation.known)

    @property
    def structured(self) -> bool:
        """Whether schemas are sent: as the recipe says, else until the service refuses them all."""
        return self.abilities.schema

    async def _address(self) -> tuple[str | None, str | None]:
        """Base address and key for the next try; None leaves them to LiteLLM."""
        key = variable(self.spec.api_key_env) if self.spec.api_key_env else None
        if key is None and self.spec.api_base is not None and not variable(OPENAI_KEY):
            key = NO_KEY if self._service_name().startswith("openai/") else None
        return self.spec.api_base, key

    def _service_name(self) -> str:
        """The name for LiteLLM; your own server speaks OpenAI's protocol unless the name says otherwise."""
        if self.spec.api_base is not None and self.name.split("/", 1)[0] not in LITELLM_PREFIXES:
            return f"openai/{self.name}"
        return self.name

    async def _request(self, call: Call) -> Reply:
        spent = Reply(text="")
        failures = 0
        empty = 0
        refused_schema: str | None = None
        if self._adapts and not self._list_checked:
            self._look_up()
        while True:
            self._may_send()
            base, key = await self._address()
            parameters = self._parameters(call, base, key)
            schema = schema_digest(call.schema) if call.schema is not None and "response_format" in parameters else None
            result = await self._try(parameters, base, key)
            if isinstance(result, Reply):
                self._adaptation.schemas(taken=schema, refused=refused_schema)
                refused_schema = None
                spent = together(spent, result)
                hopeless = result.finish_reason in ("length", "content_filter")
                content = result.text.strip() or result.reasoning or result.refusal or result.tool_call
                if content or hopeless or empty >= min(_EMPTY_RETRIES, self.spec.retries):
                    return spent
                empty += 1
                if call.seed is not None:  # the same seed would give the same empty reply
                    call = replace(call, seed=call.seed + 1_000_003)
                continue
            named = self.spec.limit_name is not None
            if self._adapts and self._adaptation.to(result, parameters, limit_is_given=named):
                continue
            if result.about_schema and schema is not None and self._may_drop_schema:
                # Only this request omits the schema; `SchemaCounts` decides about later ones.
                refused_schema, call = schema, replace(call, schema=None)
                self.schema_refusal = result.answer
                continue
            if result.connection:
                await self._lost_connection()
            if not result.retry and call.roomier:
                raise ReplyError(f"no reply of {call.max_tokens} tokens: {result.what}", Outcome.CUT)
            if not result.retry or failures >= self.spec.retries:
                raise self._error(result, failures + 1, base, parameters)
            wait = result.wait_s if result.wait_s is not None else backoff_s(failures)
            if wait > LONGEST_WAIT_S:
                asks = replace(result, what=f"{result.what}; it asks to wait {wait:.0f} seconds")
                raise self._error(asks, failures + 1, base, parameters)
            failures += 1
            _log.info("%s: %s; try %d in %.1f s", self.name, result.what, failures + 1, wait)
            await self._pause(wait)

    def _look_up(self) -> None:
        """Leaves out parameters that LiteLLM lists as not taken, without spending a request on that."""
        self._list_checked = True
        entry = listed(self.spec)
        if entry is None:
            return
        refused: set[str] = set()
        if entry.get("supports_sampling_params") is False:
            refused |= {"temperature", "top_p"}
        if self.spec.base_model is None:
            litellm = _litellm()
            try:
                model, provider, _, _ = litellm.get_llm_provider(self._service_name(), api_base=self.spec.api_base)
            except litellm.exceptions.BadRequestError:
                return  # listed without a usable provider; the request itself will fail with a message
            taken = litellm.get_supported_openai_params(model=model, custom_llm_provider=provider)
            refused |= set() if taken is None else {"temperature", "top_p", "seed", "stop"} - set(taken)
        self._adaptation.unlisted(refused, self.spec.model_fields_set)

    @property
    def _may_drop_schema(self) -> bool:
        """Whether a refused schema is dropped; if the recipe requires schemas, a refusal is a failure."""
        return self.spec.structured_output is None

    @property
    def _longest_try_s(self) -> float:
        """Time limit for one try, in seconds."""
        return self.spec.timeout_s + 5

    @property
    def _adapts(self) -> bool:
        """Whether refused parameters are left out of later requests."""
        return True

    async def _lost_connection(self) -> None:
        """Called after a try without a connection."""

    async def _try(self, parameters: dict[str, Any], base: str | None, key: str | None) -> Reply | Failure:
        litellm = _litellm()
        import openai

        started = time.monotonic()
        responses: list[Any] = []
        options = {**parameters, "logger_fn": lambda event: responses.append(event.get("original_response"))}
        try:
            # With `wait_for`, because LiteLLM's time-out is per read, and a slow stream never exceeds it.
            response = await asyncio.wait_for(litellm.acompletion(**options), self._longest_try_s)
        except TimeoutError:
            return timed_out(self.spec.timeout_s)
        except openai.OpenAIError as error:  # LiteLLM maps every failure of a service to this
            # LiteLLM rejects a whole paid reply when its usage has an unexpected type.
            response = next((parsed for raw in reversed(responses) if (parsed := from_json(raw)) is not None), None)
            if response is None:
                return classified(error, key, self.spec.timeout_s)
        return self._reply(response, time.monotonic() - started, key, parameters)

    def _reply(self, response: Any, seconds: float, key: str | None, sent: Mapping[str, Any]) -> Reply | Failure:
        """The reply without the key in use, which a service may repeat anywhere.

        Other keys are removed from the replies of every model (`optimsyn.llm.language_model`).
        """
        reply = reply_of(response, seconds)
        if isinstance(reply, Failure):
            return reply
        in_use = [key] if key is not None else []
        texts = {name: kept(value, in_use) for name, value in reply if isinstance(value, str)}
        limit = next((sent[name] for name in LIMIT_NAMES if name in sent), None)
        tokens = tokens_of(
            getattr(response, "usage", None),
            exchange_of(response, sent, limit),
            lambda text: counter_of(self.name)(text),  # lazy, because a vocabulary takes a moment to load
        )
        if tokens.doubt:
            self._adaptation.usage_is_unlikely(redact(tokens.doubt, extra_values=in_use))
        cost = self._cost(tokens, response)
        if cost is None:
            self._adaptation.price_is_unknown()
        counted = {
            "input_tokens": tokens.input,
            "output_tokens": tokens.output,
            "reasoning_tokens": tokens.reasoning,
            "cost_usd": cost,
            "estimated": bool(tokens.doubt),
        }
        return reply.model_copy(update={**texts, **counted})

    def _cost(self, tokens: Tokens, response: Any) -> float | None:
        """The cost of a reply in US dollars; None if unknown.

        LiteLLM's figure includes what a service bills besides plain tokens; the recipe's prices override it.
        """
        price = price_of(self.spec)
        counted = None
        if not tokens.doubt:  # otherwise it is based on the same implausible counts
            hidden = getattr(response, "_hidden_params", None)
            counted = believable_cost(self.spec, hidden.get("response_cost"), tokens) if hidden else None
        if price is None:
            return counted or None
        if price.source == "litellm" and self.spec.base_model is None and counted is not None:
            return counted
        return price.cost(tokens.input, tokens.output, tokens.cached)

    def _parameters(self, call: Call, base: str | None, key: str | None) -> dict[str, Any]:
        known = self._adaptation.known
        can = abilities_of(self.spec, known)
        parameters: dict[str, Any] = {
            "model": self._service_name(),
            "messages": list(call.messages),
            "timeout": self.spec.timeout_s,
            "num_retries": 0,
            "max_retries": 0,
            # LiteLLM then raises a refusal for parameters that it knows to be unsupported, as the service would.
            "drop_params": False,
        }
        if can.limit_name != "none":
            parameters[can.limit_name] = call.max_tokens
        optional = {
            "api_base": base,
            "api_key": key,
            "temperature": call.temperature if can.temperature else None,
            "top_p": self.spec.top_p if can.top_p else None,
            "seed": call.seed if can.seed else None,
            "stop": list(call.stop) or None if can.stop else None,
        }
        parameters |= {name: value for name, value in optional.items() if value is not None}
        if self.spec.reasoning_effort is not None and "reasoning_effort" not in known.left_out:
            parameters["reasoning_effort"] = self.spec.reasoning_effort
            if not can.reasoning:  # keeps LiteLLM from refusing it; the recipe decides
                parameters["allowed_openai_params"] = ["reasoning_effort"]
        extra = dict(self.spec.extra)
        if self.spec.chat_template_kwargs is not None:
            extra["chat_template_kwargs"] = self.spec.chat_template_kwargs
        if extra and parameters["model"].startswith("anthropic/"):
            # LiteLLM would send `extra_body` as a field.
            parameters |= {**extra, "allowed_openai_params": [*parameters.get("allowed_openai_params", ()), *extra]}
        elif extra:
            parameters["extra_body"] = extra
        if call.schema is not None and can.schema and schema_digest(call.schema) not in known.schemas_left_out:
            parameters["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": call.schema_name, "schema": call.schema, "strict": True},
            }
        return parameters

    def highest_price(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """The most a call can cost by the list prices, without retries of empty replies."""
        return highest_cost(self.spec, prompt_tokens, reply_tokens)

    def _longest_reply(self, reply: Reply) -> int | None:
        """The longest reply by what is known of the service."""
        return abilities_of(self.spec, self._adaptation.known).longest_reply

    def _error(self, failure: Failure, tries: int, base: str | None, sent: Mapping[str, Any]) -> ServiceError:
        where = f" at {base}" if base else ""
        often = f" ({tries} tries)" if tries > 1 else ""
        named = [key for key in self.spec.extra if re.search(rf"\b{re.escape(key)}\b", failure.answer)]
        cure = f"change or remove the model's `extra.{named[0]}` in the recipe" if named else failure.cure
        if failure.names_nothing and not named:
            cure = what_to_leave_out(sent, self.spec, self.field)
        return ServiceError(
            redact(
                f"model {self.name}{where}: {failure.what}{often}. What to do: {cure}. Every reply so far is kept; "
                f"run again to continue"
            )
        )

    def more_room(self, call: Call, reply: Reply) -> Call | None:
        """As for every model; None where no limit is sent, because a retry would be the same."""
        return None if self.abilities.limit_name == "none" else super().more_room(call, reply)


def _litellm() -> Any:
    """LiteLLM without its network look-ups, telemetry and chatter."""
    set_default(LITELLM_LOCAL_MODEL_COST_MAP, "True")
    import litellm

    # Raised for usage of a wrong type, which we report ourselves.
    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning, r"pydantic\.main")
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return litellm
