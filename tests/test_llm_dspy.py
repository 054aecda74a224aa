"""Language models inside DSPy programs, and coroutines from synchronous code."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest

from optimsyn.base.errors import BudgetError, ModelError, OptimsynError, ServiceError
from optimsyn.llm.dspy_bridge import make_lm
from optimsyn.llm.language_model import Call, LanguageModel, run_sync
from optimsyn.llm.replies import Reply
from optimsyn.recipe.recipe import ModelSpec

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class Scripted(LanguageModel):
    """Answers every call with one text, or fails with one error."""

    def __init__(self, text: str = "", error: OptimsynError | None = None, name: str = "openai/gpt-5-mini") -> None:
        super().__init__(ModelSpec(name=name, temperature=0.3, max_tokens=77), None, None, identity="scripted")
        self.text = text
        self.error = error
        self.calls: list[Call] = []

    async def _request(self, call: Call) -> Reply:
        self.calls.append(call)
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        return Reply(text=self.text, input_tokens=3, output_tokens=2)


GOOD = "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"


async def test_predict_asks_the_model_asynchronously_and_synchronously() -> None:
    model = Scripted(GOOD)
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=make_lm(model), adapter=dspy.ChatAdapter()):
        assert (await program.acall(question="Capital of France?")).answer == "Paris"
        # Synchronously although a loop is running, as in a notebook cell; a changed model must be asked again.
        model.text = GOOD.replace("Paris", "Lyon")
        assert program(question="Capital of France?").answer == "Lyon"
        with ThreadPoolExecutor(3) as pool:
            contexts = [contextvars.copy_context() for _ in range(6)]
            found = list(pool.map(lambda c: c.run(lambda: program(question="x").answer), contexts))
    assert found == ["Lyon"] * 6
    call = model.calls[0]
    assert [message["role"] for message in call.messages] == ["system", "user"]
    assert "Capital of France?" in call.messages[1]["content"]
    assert (call.temperature, call.max_tokens) == (0.3, 77)


async def test_a_schema_seed_and_stop_reach_the_model() -> None:
    model = Scripted("{}")
    schema = {"type": "object", "properties": {}}
    nested = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema, "strict": True}}
    lm = make_lm(model, temperature=0.9, max_tokens=5)
    await lm.acall("Hello", response_format=nested, seed=8, stop=["\n\n"])
    call = model.calls[-1]
    assert (call.schema, call.schema_name, call.seed, call.stop) == (schema, "pair", 8, ("\n\n",))
    assert (call.temperature, call.max_tokens) == (0.9, 5)


@pytest.mark.parametrize("error", [ServiceError("dead"), BudgetError("spent"), ModelError("too long")])
@pytest.mark.parametrize("synchronous", [True, False])
async def test_failures_come_out_of_dspy_as_they_went_in(error: OptimsynError, synchronous: bool) -> None:
    model = Scripted(error=error)
    program = dspy.ChainOfThought("question -> answer")
    with dspy.context(lm=make_lm(model)):
        if synchronous:
            with pytest.raises(type(error), match=str(error)):
                program(question="x")
        else:
            with pytest.raises(type(error), match=str(error)):
                await program.acall(question="x")
    assert len(model.calls) == 1
    assert model.failure is error


def test_a_failure_that_a_library_swallows_can_be_asked_for() -> None:
    model = Scripted(error=ServiceError("dead"))
    program = dspy.Predict("question -> answer")
    examples = [dspy.Example(question=f"{i}", answer="x").with_inputs("question") for i in range(3)]
    evaluate = dspy.Evaluate(devset=examples, metric=lambda *a: 1.0, num_threads=1, max_errors=100)
    with dspy.context(lm=make_lm(model)):
        evaluate(program)
    with pytest.raises(ServiceError, match="dead"):
        model.raise_failure()


def test_a_copied_program_keeps_its_model() -> None:
    model = Scripted(GOOD)
    program = dspy.Predict("question -> answer")
    program.set_lm(make_lm(model))
    assert program.deepcopy()(question="x").answer == "Paris"
    assert len(model.calls) == 1


async def test_run_sync_inside_a_running_loop_and_inside_itself() -> None:
    async def inner(value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    async def outer() -> int:
        return run_sync(inner(run_sync(inner(1))))

    assert run_sync(inner(1)) == 2
    assert run_sync(outer()) == 3


def test_run_sync_takes_context_variables_along_and_brings_errors_back() -> None:
    async def look() -> str:
        return VARIABLE.get()

    async def fail() -> None:
        raise KeyError("here")

    VARIABLE.set("seen")
    assert run_sync(look()) == "seen"
    with pytest.raises(KeyError, match="here"):
        run_sync(fail())


async def test_a_temperature_that_the_recipe_leaves_to_the_service_stays_so() -> None:
    model = Scripted(GOOD)
    model.spec = model.spec.model_copy(update={"temperature": None})
    with dspy.context(lm=make_lm(model), adapter=dspy.ChatAdapter()):
        assert (await dspy.Predict("question -> answer").acall(question="x")).answer == "Paris"
    assert (model.calls[-1].temperature, model.calls[-1].max_tokens) == (None, 77)
