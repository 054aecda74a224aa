"""The tools of an author at work on one passage, what they have cost so far, and when it is enough."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optimsyn.base.errors import OptimsynError, Outcome, ReplyError
from optimsyn.base.seeds import derive_seed
from optimsyn.llm.reply import Usage, heard_replies
from optimsyn.programs.prompts.author_prompts import DRAFT, FINISH, TOOLS, Action
from optimsyn.programs.prompts.fence import fenced_result
from optimsyn.programs.rubric import parse_rubric, rubric_text
from optimsyn.reward.author.trajectory import ENDINGS, Ending, Step, Trajectory
from optimsyn.reward.author.tried import Tried, best_of, ranking

if TYPE_CHECKING:
    from optimsyn.data.records import Rubric
    from optimsyn.llm.replies import Reply
    from optimsyn.programs.task_shape import TaskShape
    from optimsyn.recipe.sections.author import Author
    from optimsyn.reward.author.library import Library
    from optimsyn.reward.drafting import RubricRequest, WriteRubric
    from optimsyn.reward.judgements import Judgement
    from optimsyn.reward.reward import InfluenceReward

# So many steps in a row that are no use of a tool end the work.
MOST_MISUSE = 3
# Tools whose result cannot change.
_SAME_AGAIN = ("search", "read", "questions")
_NUMBER = re.compile(r"\d+")


class MisuseError(Exception):
    """A step that is no use of a tool; its text tells the model why."""


@dataclass(frozen=True)
class Workplace:
    """What the author has at every passage.

    Attributes:
        reward: Has pairs written, checked and scored; every judgement is in its ledger.
        library: The passages of the run.
        kinds: What kinds of questions the experts ask (`kinds_of`).
        shape: The form of these questions.
    """

    reward: InfluenceReward
    library: Library
    kinds: str
    shape: TaskShape


class Desk:
    """The tools of an author for one passage.

    Args:
        blank: The request that a rubric is wanted for.
        config: The recipe's section `author`.
        place: What it has at every passage.
        write: Writes the draft when the author gives none itself; None: it writes its own.

    Attributes:
        steps: What was done.
        failure: The first error of a service, a cap or a disk. It ends the work and is raised.
    """

    def __init__(
        self,
        blank: RubricRequest,
        config: Author,
        place: Workplace,
        write: WriteRubric | None = None,
    ) -> None:
        self.blank = blank
        self.config = config
        self.steps: list[Step] = []
        self.failure: OptimsynError | None = None
        self._place = place
        self._write = write
        self._tried: list[Tried] = []
        self._heard: list[Reply] = []
        self._counted = 0
        self._ended: Ending | None = None
        self._chosen: int | None = None
        self._unread: Outcome | None = None
        self._compared = 0
        self._tools: dict[str, Callable[[str], Awaitable[str]]] = {
            "search": self._search,
            "read": self._read,
            "questions": self._questions,
            DRAFT: self._draft,
            "pair": self._pair,
            "score": self._score,
            "compare": self._compare,
            FINISH: self._finish,
        }

    def counts(self, heard: list[Reply]) -> None:
        """Takes the list that all replies for this passage are added to."""
        self._heard = heard

    @property
    def usage(self) -> Usage:
        """What was asked for so far, kept replies as when they were bought: a resumed run ends where it would have."""
        return Usage.of(self._heard)

    @property
    def over(self) -> Ending | None:
        """Why nothing more may be asked; None: there is room."""
        if self._ended is None:
            last = self.steps[-MOST_MISUSE:]
            if len(last) == MOST_MISUSE and all(step.misuse for step in last):
                self._ended = Ending.MISUSE
            else:
                self._ended = self.spent or (Ending.STEPS if len(self.steps) >= self.config.steps else None)
        return self._ended

    @property
    def left(self) -> str:
        """What is left, as a sentence for the model."""
        steps, pairs = self.config.steps - len(self.steps), self._pairs_left
        said = f"{steps} steps and {pairs} pairs are left."
        if steps == 1:
            return f"{said} This is the last one: finish."
        return said + ("" if pairs else " No more drafts can be tried: compare, or finish.")

    @property
    def best(self) -> int | None:
        """Number of the draft to take; see `best_of`."""
        return best_of(self._tried)

    @property
    def judged(self) -> list[Judgement]:
        """The judgements of the scored drafts, in their order."""
        return [tried.row for tried in self._tried if tried.row is not None]

    @property
    def numbers(self) -> str:
        """The numbers of all drafts, as `score` takes them."""
        return " ".join(str(number) for number, _ in self._numbered)

    async def use(self, action: Action, *, unread: Outcome | None = None) -> str:
        """Takes one step and returns its result.

        Args:
            action: The step.
            unread: The outcome of a reply in which no step could be read; `argument` says why.

        Raises:
            OptimsynError: A service failed for good, a cap was reached or the disk is full; also kept as `failure`.
        """
        before = [(tried.draft, tried.row) for tried in self._tried]
        misuse = ""
        self._unread = unread
        try:
            result = await self._do(action, unread)
        except MisuseError as why:
            result = misuse = str(why)
        except OptimsynError as error:
            self.failure = error
            raise
        changed = [
            (number, tried)
            for number, tried in self._numbered
            if number > len(before) or (tried.draft, tried.row) != before[number - 1]
        ]
        # A draft is scored once.
        rows = [tried.row for number, tried in changed if tried.row is not None and before[number - 1][1] is None]
        counted, self._counted = self._counted, len(self._heard)
        self.steps.append(
            Step(
                number=len(self.steps) + 1,
                thought=action.thought,
                tool=action.tool,
                argument=action.argument if unread is None else "",
                result=result,
                misuse=misuse,
                drafts=tuple(number for number, _ in changed),
                judged=tuple(row.key for row in rows),
                rewards=tuple(None if row.unjudged is not None else row.reward for row in rows),
                usage=Usage.of(self._heard[counted:]),
            )
        )
        return result

    async def conclude(self) -> None:
        """Has the draft that is taken judged, if it is not: its pair is the candidate.

        Raises:
            OptimsynError: The first error of a service, a cap or a disk.
        """
        if self.failure is not None:
            raise self.failure
        number = self._chosen or self.best
        if number is not None and (tried := self._tried[number - 1]).row is None:
            if tried.draft is None:
                await self._write_pairs([tried])
            await self._judge(tried)

    def trajectory(self, model: str, decided: Literal["model", "plan"]) -> Trajectory:
        """All that was done; the best draft is taken where the work was ended."""
        blank = self.blank
        return Trajectory(
            passage_id=blank.passage.id,
            kind=blank.kind,
            seed=blank.seed,
            guiding_text=blank.guiding_text,
            model=model,
            decided=decided,
            steps=tuple(self.steps),
            drafts=tuple(tried.record for tried in self._tried),
            chosen=self._chosen or self.best,
            ended=self.ended,
            usage=self.usage,
        )

    def nothing(self) -> ReplyError:
        """Why there is no rubric."""
        last = self.steps[-1].result if self.steps else ""
        why = f"the author ended without a draft, because {ENDINGS[self.ended]}"
        return ReplyError(f"{why}; the last result: {last}" if last else why, self._unread or Outcome.INVALID)

    @property
    def ended(self) -> Ending:
        """Why it has ended."""
        return Ending.FINISHED if self._chosen is not None else self.over or Ending.UNREADABLE

    @property
    def _numbered(self) -> list[tuple[int, Tried]]:
        return list(enumerate(self._tried, 1))

    @property
    def _pairs_left(self) -> int:
        return self.config.drafts - sum(tried.draft is not None for tried in self._tried)

    @property
    def spent(self) -> Ending | None:
        """The author's cap on tokens or money that is used up; None: there is room."""
        usage, config = self.usage, self.config
        if config.tokens is not None and usage.tokens >= config.tokens:
            return Ending.TOKENS
        if config.cost_usd is not None and usage.cost_usd >= config.cost_usd:
            return Ending.COST
        return None

    async def _do(self, action: Action, unread: Outcome | None) -> str:
        if unread is not None:
            raise MisuseError(f"No step could be read: {fenced_result(action.argument)}")
        if not action.tool:
            raise MisuseError("The reply has no line `Do:` with a tool. Write one, such as `Do: compare`.")
        tool = self._tools.get(action.tool)
        if tool is None:
            raise MisuseError(f"There is no tool {action.tool!r}; the tools are {', '.join(TOOLS)}.")
        if action.tool in _SAME_AGAIN and any(
            (step.tool, step.argument) == (action.tool, action.argument) and not step.misuse for step in self.steps
        ):
            raise MisuseError(f"That was step {self._when(action)} already, with the same result. Do something else.")
        return await tool(action.argument)

    def _when(self, action: Action) -> int:
        return next(s.number for s in self.steps if (s.tool, s.argument) == (action.tool, action.argument))

    async def _search(self, words: str) -> str:
        if not words.strip():
            raise MisuseError("`search` takes words, such as `Do: search library opening hours`.")
        found = await asyncio.to_thread(self._place.library.search, words, self.blank.passage.id)
        if not found:
            return "No other passage has these words."
        return "\n".join(f"Passage {number}. Text: {text}" for number, text in found)

    async def _read(self, argument: str) -> str:
        (number,) = self._numbers_in(argument, "read", "a passage that `search` has found", most=1)
        passage = self._place.library.read(number)
        if passage is None:
            raise MisuseError(f"There is no passage {number}; there are {len(self._place.library.passages)}.")
        return f"Passage {number}. Text: {fenced_result(passage.text)}"

    async def _questions(self, argument: str) -> str:
        return self._place.kinds

    async def _draft(self, argument: str) -> str:
        if self._write is not None:
            return await self._written_draft(self._write)
        try:
            rubric = parse_rubric(argument)
        except ReplyError as error:
            raise MisuseError(f"This is no rubric: {fenced_result(str(error))}") from None
        same = self._same(rubric)
        if same is not None:
            raise MisuseError(f"This is draft {same} again. Change what it asks for.")
        self._tried.append(Tried(rubric))
        return f"This is draft {len(self._tried)}."

    async def _written_draft(self, write: WriteRubric) -> str:
        """A draft by the rubric writer; the first one is that of the variant without an author."""
        number = sum(step.tool == DRAFT for step in self.steps)
        seed = derive_seed(self.blank.seed, "author", number) if number else self.blank.seed
        try:
            rubric = await write(self.blank.model_copy(update={"seed": seed}))
        except ReplyError as error:
            self._unread = error.outcome
            return f"The writer's reply holds no rubric: {fenced_result(str(error))}"
        same = self._same(rubric)
        if same is not None:
            return f"The writer wrote draft {same} again."
        self._tried.append(Tried(rubric))
        return f"This is draft {len(self._tried)}.\n{rubric_text(rubric)}"

    async def _pair(self, argument: str) -> str:
        (number,) = self._numbers_in(argument, "pair", "a draft", most=1)
        tried = self._draft_of(number)
        if tried.draft is not None:
            raise MisuseError(f"Draft {number} has its pair: {tried.pair}")
        if (short := self._short_of_pairs(1)) is not None:
            return short
        await self._write_pairs([tried])
        return f"Draft {number}. {tried.pair}"

    async def _score(self, argument: str) -> str:
        numbers = self._numbers_in(argument, "score", "one draft or several", most=None)
        fresh = [(n, tried) for n in numbers if (tried := self._draft_of(n)).row is None]
        if not fresh:
            raise MisuseError(f"Scored already. {ranking(self._tried)}")
        unwritten = [tried for _, tried in fresh if tried.draft is None]
        if (short := self._short_of_pairs(len(unwritten))) is not None:
            return short
        await self._write_pairs(unwritten)
        said = []
        for number, tried in fresh:
            row = await self._judge(tried)
            reward = "no reward" if row.unjudged is not None else f"reward {row.reward:+.3g}"
            said.append(f"Draft {number}: {reward}. {fenced_result(row.feedback)} {tried.pair}")
        return "\n".join(said)

    async def _judge(self, tried: Tried) -> Judgement:
        """Has one draft judged, alone: its score does not depend on what else is under way."""
        # Its replies were counted as they were written; the reward finds them in the cache or the ledger.
        with heard_replies():
            (tried.row,) = await self._place.reward.judge([self.blank.under(tried.rubric)])
        assert tried.row is not None
        return tried.row

    async def _compare(self, argument: str) -> str:
        scored = sum(tried.scored for tried in self._tried)
        if not scored:
            raise MisuseError("No draft is scored yet; `score` measures drafts.")
        if scored == self._compared:
            raise MisuseError(f"Nothing was scored since. {ranking(self._tried)}")
        self._compared = scored
        return ranking(self._tried)

    async def _finish(self, argument: str) -> str:
        number = self.best if not _NUMBER.search(argument) else self._numbers_in(argument, FINISH, "a draft", most=1)[0]
        if number is None:
            raise MisuseError("There is no draft to finish with; write one with `draft`.")
        if self._draft_of(number).draft is None and self._pairs_left < 1:
            raise MisuseError(f"Draft {number} has no pair, and no pair is left; finish with a scored draft.")
        self._chosen = number
        return f"Draft {number} is the rubric."

    def _numbers_in(self, argument: str, tool: str, what: str, *, most: int | None) -> list[int]:
        numbers = list(dict.fromkeys(int(text[:9]) for text in _NUMBER.findall(argument)))
        if not numbers or (most is not None and len(numbers) > most):
            raise MisuseError(f"`{tool}` takes the number of {what}, such as `Do: {tool} 1`.")
        return numbers

    def _draft_of(self, number: int) -> Tried:
        if not 1 <= number <= len(self._tried):
            there = f"there are drafts 1 to {len(self._tried)}" if self._tried else "there is none yet"
            raise MisuseError(f"There is no draft {number}; {there}.")
        return self._tried[number - 1]

    def _same(self, rubric: Rubric) -> int | None:
        return next((number for number, tried in self._numbered if tried.rubric == rubric), None)

    def _short_of_pairs(self, wanted: int) -> str | None:
        """Why so many pairs cannot be written."""
        if wanted and (spent := self.spent) is not None:
            return f"No pair is written, because {ENDINGS[spent]}."
        if wanted > self._pairs_left:
            raise MisuseError(
                f"{self._pairs_left} of {self.config.drafts} pairs are left, and that takes {wanted}. "
                f"{ranking(self._tried)}".strip()
            )
        return None

    async def _write_pairs(self, tried: list[Tried]) -> None:
        """Writes the pairs of drafts, at the same time; they are in the cache when the reward asks for them."""
        drafter = self._place.reward.drafter
        drafts = await asyncio.gather(*(drafter.write(self.blank.under(each.rubric)) for each in tried))
        for each, draft in zip(tried, drafts, strict=True):
            each.draft = drafter.check(draft)
