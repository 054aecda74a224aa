"""The author: `dspy.ReAct` over the tools of a desk, or the plan that tries all drafts, and a record of both.

DSPy brings the loop. The prompt and the reader of a step are our own (`author_prompts`): a step is plain text, so any
model that follows instructions can take it, and what it got wrong becomes a result that it sees, not the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import dspy

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.llm.dspy_bridge import make_lm
from optimsyn.llm.reading.asking import hear
from optimsyn.llm.reply import heard_replies
from optimsyn.programs.prompts.author_prompts import (
    BASE_STOP,
    FINISH,
    STOP,
    TOOLS,
    Action,
    author_messages,
    read_action,
)
from optimsyn.programs.rubric import WriteRubric
from optimsyn.reward.author.desk import Desk, Workplace
from optimsyn.reward.author.trajectory import Ending, Trajectory, transcript

if TYPE_CHECKING:
    from optimsyn.llm.language_model import Call, LanguageModel
    from optimsyn.llm.replies import Reply
    from optimsyn.recipe.sections.author import Author
    from optimsyn.reward.drafting import RubricRequest
    from optimsyn.reward.drafting import WriteRubric as Write
    from optimsyn.reward.judgements import Judgement

_NOT_TAKEN = "not_taken"  # the tool that a step goes to when it ends nothing and calls nothing


class RubricAuthor:
    """Writes rubrics with tools, one passage at a time; may work on many at once.

    Args:
        config: The recipe's section `author`.
        model: Calls the tools.
        write: Writes a draft where the model does not: under the plan, and for a base model.
        place: What it has at every passage.
        role: Field of the model in the recipe: `author` or `rubric`.

    Attributes:
        trajectories: What was done, by guiding text, passage and seed.
        judged: The judgements of the scored drafts, by the same, in the order of the drafts.
    """

    def __init__(
        self,
        config: Author,
        model: LanguageModel,
        write: Write,
        place: Workplace,
        *,
        role: Literal["author", "rubric"] = "rubric",
    ) -> None:
        self.config = config
        self.model = model
        self.role = role
        self.trajectories: dict[tuple[str, str, int], Trajectory] = {}
        self.judged: dict[tuple[str, str, int], list[Judgement]] = {}
        self.write = write
        self.place = place

    @property
    def decides(self) -> Literal["model", "plan"]:
        """Who calls the tools."""
        if self.config.decides == "auto":
            return "model" if self.model.chat else "plan"
        return self.config.decides

    async def ask(self, blank: RubricRequest) -> RubricRequest:
        """Adds the rubric to a request, or the reason why there is none, as `requested` does.

        The pair of the request is that of the chosen draft: same rubric, same seed, so it is in the ledger already.

        Raises:
            ServiceError: A service failed for good.
            BudgetError: A cap of the run was reached; those of the author end its work without an error.
        """
        decided = self.decides
        own = decided == "model" and self.model.chat
        if own:
            blank = blank.model_copy(update={"rubric_model": self.model.name})
        desk = Desk(blank, self.config, self.place, write=None if own else self.write)
        with heard_replies() as heard:
            desk.counts(heard)
            await (self._by_plan(desk) if decided == "plan" else self._by_model(desk, blank))
            await desk.conclude()
        trajectory = desk.trajectory(self.model.name, decided)
        place = (blank.guiding_text, blank.passage.id, blank.seed)
        self.trajectories[place], self.judged[place] = trajectory, desk.judged
        return blank.under(trajectory.rubric or desk.nothing())

    def of(self, judged: Sequence[Judgement]) -> list[Trajectory]:
        """The trajectories that judged candidates came of, in their order."""
        found = (self.trajectories.get((row.guiding_text, row.passage_id, row.seed)) for row in judged)
        return [trajectory for trajectory in found if trajectory is not None]

    async def _by_plan(self, desk: Desk) -> None:
        """Tries as many drafts as the recipe allows, and takes the best."""
        for _ in range(self.config.drafts):
            if desk.spent is not None:
                break
            await desk.use(Action("draft"))
        if desk.best is None:
            return
        if desk.spent is None:
            await desk.use(Action("score", desk.numbers))
            await desk.use(Action("compare"))
        await desk.use(Action(FINISH, str(desk.best)))

    async def _by_model(self, desk: Desk, blank: RubricRequest) -> None:
        """Lets the model call the tools, in DSPy's loop."""
        adapter = _StepAdapter(self, desk, blank)
        tools = [_tool(name, adapter) for name in (*list(TOOLS)[:-1], _NOT_TAKEN)]
        react = dspy.ReAct(WriteRubric, tools, max_iters=self.config.steps)
        # The instruction is the guiding text alone, as that of the rubric writer; the prompt explains the tools.
        react.react = dspy.Predict(react.react.signature.with_instructions(blank.guiding_text or "-"))
        react.extract = _AtDesk()
        lm = make_lm(self.model, hear=partial(adapter.hear, self.model))
        stop = STOP if self.model.chat else BASE_STOP
        with dspy.context(lm=lm, adapter=adapter):
            await react.acall(
                passage=blank.passage.text, kind=blank.kind, config={"seed": blank.seed, "stop": list(stop)}
            )

    def messages(self, desk: Desk, blank: RubricRequest, guiding_text: str) -> list[dict[str, str]]:
        """The prompt of the next step."""
        chat = self.model.chat
        return author_messages(
            guiding_text,
            blank.passage.text,
            self.place.shape.form(blank.kind).described(),
            transcript=transcript(desk.steps, chat=chat),
            left=desk.left,
            chat=chat,
        )


class _AtDesk(dspy.Module):
    """Takes the place of ReAct's last request: the rubric is the chosen draft, so nothing is asked for it."""

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        return dspy.Prediction()


class _StepAdapter(dspy.Adapter):
    """Lays out the prompt of a step, and reads the step, for DSPy's loop.

    Attributes:
        action: The latest step, and with it the outcome of a reply in which none could be read.
    """

    def __init__(self, author: RubricAuthor, desk: Desk, blank: RubricRequest) -> None:
        super().__init__()
        self.desk = desk
        self.action: tuple[Action, Outcome | None] = (Action(""), None)
        self._author = author
        self._blank = blank
        self._ends = False

    async def hear(self, model: LanguageModel, call: Call) -> Reply | None:
        """Asks for the next step, unless the work is over."""
        self._ends = self.desk.failure is not None or self.desk.over is not None
        if self._ends:
            return None

        def read(reply: Reply, max_tokens: int | None) -> Action:
            return read_action(reply, max_tokens=max_tokens, cue=not model.chat)

        try:
            action, reply = await hear(model, call, read, self._author.role)
        except ReplyError as error:
            self.action = Action("", str(error)), error.outcome
            return None
        self.action = action, None
        if action.tool == FINISH:
            # ReAct's own `finish` ends its loop whatever it is called with, so ours is taken first.
            await self.desk.use(action)
            self._ends = self.desk.ended is Ending.FINISHED
        return reply

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The messages of the next step."""
        return [dict(each) for each in self._author.messages(self.desk, self._blank, signature.instructions)]

    def format_user_message_content(self, signature: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> str:
        """ReAct's text of the steps so far; `format` takes them from the desk."""
        return ""

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """The step as ReAct's fields."""
        action, unread = self.action
        if self._ends:
            tool = FINISH
        elif action.tool == FINISH:
            return {"next_thought": action.thought, "next_tool_name": _NOT_TAKEN, "next_tool_args": {"taken": True}}
        else:
            tool = action.tool if unread is None and action.tool in TOOLS else _NOT_TAKEN
        return {"next_thought": action.thought, "next_tool_name": tool, "next_tool_args": {}}


def _tool(name: str, adapter: _StepAdapter) -> dspy.Tool:
    """A tool of the desk as DSPy calls it; it takes the step that was read last."""

    async def use(taken: bool = False) -> str:
        action, unread = adapter.action
        return adapter.desk.steps[-1].result if taken else await adapter.desk.use(action, unread=unread)

    does = TOOLS[name][1] if name in TOOLS else "tells what was wrong with a step"
    return dspy.Tool(use, name=name, desc=does)
