"""The protocol of a form of question: one object with everything that depends on the form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from optimsyn.base.errors import DataError
from optimsyn.data.answer_metrics import all_given, all_given_f1, exact_match, token_f1
from optimsyn.data.demonstrations import DEMOS, Demo
from optimsyn.data.forms.cells import accepted_answers, needed_answers, with_scale
from optimsyn.data.language.grounding import Source
from optimsyn.data.records import Pair, Passage, Question


@dataclass(frozen=True)
class Gold:
    """The gold answer of a row of a question file.

    Attributes:
        answer: The gold answer.
        answers: All accepted ones, `answer` first; empty: `answer` alone.
        choices: Options, for a form that has them.
        answer_index: The index of the gold option.
        details: Further data of the form, as JSON values by name.
        question: The question, for a form with another `asks_in`; "": the row's `question`.
    """

    answer: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    question: str = ""


@dataclass(frozen=True)
class Content:
    """The content of a pair, without its lineage; fields as in `Gold`."""

    question: str
    answer: str
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Key:
    """One key of the JSON object that a generator writes.

    Attributes:
        name: The key.
        asks: Its description in the prompt.
        options: The allowed texts; empty: any.
        several: Whether a list of texts is accepted, and joined by commas.
        needed: Whether a reply without it is no pair.
        lines: Whether white space and line breaks inside the text are kept.
        items: Whether it is a list of texts; `content` gets one a line.
    """

    name: str
    asks: str
    options: tuple[str, ...] = ()
    several: bool = False
    needed: bool = True
    lines: bool = False
    items: bool = False


@dataclass(frozen=True)
class Heard:
    """The target's response to a test question.

    Attributes:
        text: Its answer, decoded greedily up to the end of the line, or of the text for a form with `lines`; "" for a
            form that decodes nothing.
        means: Mean log-likelihood per token of each of the form's `candidates`, in nats.
        tolerance: The recipe's `evaluation.tolerance` for figures, relative.
    """

    text: str
    means: tuple[float, ...]
    tolerance: float = 0.0


@dataclass(frozen=True)
class Marks:
    """The marks of one answer of the target.

    Attributes:
        prediction: The answer, for people.
        correct: Counts for the accuracy; None where no answer is simply right or wrong.
        loss_of: The index of the candidate whose negative log-likelihood is the answer loss.
        exact_match: For a decoded answer: it equals an accepted one.
        token_f1: For a decoded answer: token F1 against the best accepted one.
        choice_scores: For options: `Heard.means`.
        further: Custom metrics by name; more is better. The report shows the mean over the questions that have one, so
            whether a question has it must not depend on the answer.
    """

    prediction: str
    correct: bool | None
    loss_of: int = 0
    exact_match: bool | None = None
    token_f1: float | None = None
    choice_scores: tuple[float, ...] | None = None
    further: dict[str, float] = field(default_factory=dict)


class Looked(Protocol):
    """What a form's check may look at beside the pair (`optimsyn.programs.checks.CheckContext` is one)."""

    passage: Passage

    @property
    def source_words(self) -> frozenset[str]:
        """Stems of all words of the passage and its title."""

    @property
    def language(self) -> str:
        """The passage's language, as an ISO 639-1 code."""

    @property
    def source(self) -> Source:
        """The passage and its title, to ask which words come from them, in any language."""


FormCheck = Callable[[Pair, Looked], str | None]


class QuestionForm(Protocol):
    """A form of question: free answers, multiple choice, true or false, or one of your own.

    Inherit from this class: what you do not override behaves as for a free answer. A form is constructed without
    arguments, has no state except from `fitted`, and imports neither torch nor dspy.

    Attributes:
        label: The name in tables, such as `free answers`.
        in_rubric: What `described` says by default.
        columns: Columns of a question file that it reads beside those of all questions.
        decodes: Whether the evaluation decodes an answer of the target, which takes time.
        free_length: Whether the length of an answer is free, so that advice about it makes sense.
        demos: The worked examples of its prompts.
        lines: Whether an answer has lines, whose white space is kept from the row or the reply to the dataset.
        question_label: Label of a question in the plain layout, for targets without a chat template.
        statement_label: Where the `question` is a statement, the label under which the embedded writer is asked for it
            again when it has written a question; else "".
        answer_label: Label of an answer there.
        asks_in: The column that holds the question.
        checks: The form's validity checks, by name: a function of a pair of this form and a `Looked` that returns None,
            or the reason why the pair fails. Its docstring appears in tables.

    Example:
        >>> class Numbers(QuestionForm):
        ...     label, in_rubric = "numbers", "a question whose answer is a number"
        ...
        ...     def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        ...         return Key("answer", "the number, in digits"), Key("question", "the question that it answers")
    """

    label: ClassVar[str]
    in_rubric: ClassVar[str] = ""
    columns: ClassVar[tuple[str, ...]] = ()
    decodes: ClassVar[bool] = True
    free_length: ClassVar[bool] = True
    demos: ClassVar[tuple[Demo, ...]] = DEMOS
    lines: ClassVar[bool] = False
    question_label: ClassVar[str] = "Question"
    statement_label: ClassVar[str] = ""
    answer_label: ClassVar[str] = "Answer"
    asks_in: ClassVar[str] = "question"
    checks: ClassVar[Mapping[str, FormCheck]] = {}

    def fitted(self, questions: Sequence[Question]) -> QuestionForm:
        """The form fitted to the validation questions: number of options, length of answers.

        Args:
            questions: All of them, also of other forms.
        """
        return self

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads the answer of a row of a question file; optimsyn reads `question`, `context` and the like.

        Args:
            values: The row by field name, after the recipe's `columns`.

        Raises:
            DataError: The row has no usable answer; the message says why, without the place.
        """
        spans = [with_scale(span, values) for span in needed_answers(values)]
        if spans:
            return Gold("; ".join(spans), details={"spans": spans})
        answers = [with_scale(answer, values) for answer in accepted_answers(values)]
        if not answers:
            raise DataError("has no answer; give it an `answer` or remove the row")
        return Gold(answers[0], tuple(dict.fromkeys(answers)))

    def described(self) -> str:
        """The form in a few words for prompts, such as `multiple choice, four options`; "" for none."""
        return self.in_rubric

    def task(self) -> str:
        """One sentence that tells a base model what the following examples show."""
        return "From each passage: a quoted sentence, an exam question about it and the short answer."

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """The keys of a generator's reply after the `quote`; `question` and `answer` are required.

        Args:
            seed: Of the pair, for a form whose keys vary.
        """
        return (
            Key("answer", "the correct answer, as short as possible", several=True),
            Key("question", "the exam question that it answers, clear to a reader who has not seen the passage"),
        )

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """The reply of a worked example: a value for each of the `reply_keys`."""
        return {"answer": demo.answer, "question": demo.question}

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """Maps other spellings in a generator's reply to the keys; values as in its JSON."""
        return values

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The pair in a reply.

        Args:
            reply: A text for each of the `reply_keys`, of one line unless the key says `lines` or `items`; none of the
                needed ones is empty.
            seed: Of the pair, for random choices.

        Raises:
            ReplyError: The reply has no pair of this form.
        """
        asked = {key.name for key in self.reply_keys(seed)} - {"question", "answer"}
        return Content(reply["question"], reply["answer"], details={name: reply[name] for name in sorted(asked)})

    def is_verdict(self, pair: Pair) -> bool:
        """Whether the answer is a verdict such as yes or no, without words from the passage."""
        return False

    def is_derived(self, pair: Pair) -> bool:
        """Whether the figures of the answer follow from others, which a check of the form verifies."""
        return False

    def checked(self, pair: Pair, check: str) -> Pair | None:
        """What a general check sees of a pair: a question and an answer of one line each.

        Args:
            pair: The pair.
            check: Name of the check, such as `length`.

        Returns:
            The pair; None where the check says nothing about this form.
        """
        return pair

    def parts(self, item: Question | Pair) -> tuple[str, ...]:
        """The question, then the lines shown below it, such as options; for tables and to compare questions."""
        return (item.question, *(item.choices or ()))

    def prompt(self, item: Question | Pair) -> str:
        """The question as the target sees it: the user's turn, or what follows `Question: ` in the plain layout."""
        first, *rest = self.parts(item)
        return "\n".join([first.strip(), *(f"- {' '.join(part.split())}" for part in rest)])

    def answer(self, item: Question | Pair) -> str:
        """The answer as the target learns it."""
        return item.answer

    def turns(self, item: Question | Pair) -> tuple[tuple[str, str], ...]:
        """Each `prompt` with its `answer`, in order; more than one in a dialogue, which learns all answers."""
        return ((self.prompt(item), self.answer(item)),)

    def candidates(self, question: Question) -> tuple[str | None, ...]:
        """Answers to evaluate the likelihood of; None is the question's `answer`."""
        return (None,)

    def marks(self, question: Question, heard: Heard) -> Marks:
        """Marks the target's response to a test question."""
        text, within = heard.text, heard.tolerance
        spans = question.details.get("spans")
        if isinstance(spans, list):
            needed = list(map(str, spans))
            matched, f1 = all_given(text, needed, tolerance=within), all_given_f1(text, needed, tolerance=within)
        else:
            accepted = question.answers or (question.answer,)
            matched = exact_match(text, accepted, tolerance=within)
            f1 = token_f1(text, accepted, tolerance=within)
        return Marks(text, matched, exact_match=matched, token_f1=f1)
