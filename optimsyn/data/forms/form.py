"""What a form of question says of itself: one object that holds everything that depends on the form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from optimsyn.base.errors import DataError
from optimsyn.data.answer_metrics import exact_match, token_f1
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms.cells import accepted_answers
from optimsyn.data.records import Pair, Passage, Question


@dataclass(frozen=True)
class Gold:
    """What a row of a question file says about the answer.

    Attributes:
        answer: The gold answer.
        answers: All accepted ones, `answer` first; left out: `answer` alone.
        choices: Options, for a form that has them.
        answer_index: Which option is gold.
        details: Whatever else the form keeps of a question, as JSON values by name.
    """

    answer: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """What a pair says, without its lineage; fields as in `Gold`."""

    question: str
    answer: str
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Key:
    """One key of the JSON object that a generator is asked for.

    Attributes:
        name: The key.
        asks: What the prompt says that it holds.
        options: The texts that it may hold; empty: any.
        several: Whether a list of texts is taken, joined by commas.
    """

    name: str
    asks: str
    options: tuple[str, ...] = ()
    several: bool = False


@dataclass(frozen=True)
class Heard:
    """What the target said to a test question.

    Attributes:
        text: Its answer, decoded greedily up to the end of the line; "" for a form that decodes nothing.
        means: Mean log-likelihood per token of each of the form's `candidates`, in nats.
    """

    text: str
    means: tuple[float, ...]


@dataclass(frozen=True)
class Marks:
    """How one answer of the target is marked.

    Attributes:
        prediction: What it answered, for people.
        correct: Counts for the accuracy.
        loss_of: Which candidate's negative log-likelihood is the answer loss.
        exact_match: For a decoded answer: it is an accepted one, word for word.
        token_f1: For a decoded answer: token F1 against the best accepted one.
        choice_scores: For options: `Heard.means`.
        further: Metrics of the form's own, by name; more is better. The report shows each as its mean over the
            questions that have it, so whether a question has one must not depend on the answer.
    """

    prediction: str
    correct: bool
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


FormCheck = Callable[[Pair, Looked], str | None]


class QuestionForm(Protocol):
    """A form of question: free answers, multiple choice, true or false, or one of your own.

    Every room of optimsyn asks the form where forms differ. Inherit from this class: what you leave out then behaves
    as for a free answer. A form is made without arguments, keeps no state but what `fitted` gives it, and needs neither
    torch nor dspy.

    Attributes:
        label: What tables call questions of this form, such as `free answers`.
        in_rubric: What whoever writes a rubric is told about the form, such as `multiple choice`; "" for nothing.
        columns: Columns of a question file that it reads beside those that all questions have.
        decodes: Whether the target's own answer is wanted in the evaluation, which takes time.
        free_length: Whether an answer may be longer or shorter at will, so that advice about it makes sense.
        checks: The form's own validity checks, by name: a function of a pair of this form and a `Looked` that returns
            None, or the reason why the pair fails. Its docstring goes into tables.

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
    checks: ClassVar[Mapping[str, FormCheck]] = {}

    def fitted(self, questions: Sequence[Question]) -> QuestionForm:
        """The form as the validation questions have it: how many options, how long an answer.

        Args:
            questions: All of them, also those of other forms.
        """
        return self

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads the answer of a row of a question file; `question`, `context` and the like are read for you.

        Args:
            values: The row by field name, after the recipe's `columns`.

        Raises:
            DataError: The row holds no usable answer. Says why, without the place.
        """
        answers = accepted_answers(values)
        if not answers:
            raise DataError("has no answer; give it an `answer` or remove the row")
        return Gold(answers[0], tuple(dict.fromkeys(answers)))

    def task(self) -> str:
        """One sentence that tells a base model what the examples after it show."""
        return "From each passage: a quoted sentence, an exam question about it and the short answer."

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """What a generator is asked for after the `quote`; `question` and `answer` must be among it.

        Args:
            seed: Of the pair, for a form that asks for different things in turn.
        """
        return (
            Key("answer", "the correct answer, as short as possible", several=True),
            Key("question", "the exam question that it answers, clear to a reader who has not seen the passage"),
        )

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """The reply that a worked example shows: a value for each of the `reply_keys`."""
        return {"answer": demo.answer, "question": demo.question}

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """A generator's reply with other spellings brought to those of the keys; values as they stood in its JSON."""
        return values

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The pair that a reply says.

        Args:
            reply: A text of one line for each of the `reply_keys`, none of them empty.
            seed: Of the pair, for whatever is drawn.

        Raises:
            ReplyError: It holds no pair of this form.
        """
        asked = {key.name for key in self.reply_keys(seed)} - {"question", "answer"}
        return Content(reply["question"], reply["answer"], details={name: reply[name] for name in sorted(asked)})

    def is_verdict(self, pair: Pair) -> bool:
        """Whether the answer is one such as yes or no, which has no words that could come from the passage."""
        return False

    def parts(self, item: Question | Pair) -> tuple[str, ...]:
        """The question, then what is shown with it one below the other, such as options.

        Tables show it, and two questions are the same where it is.
        """
        return (item.question, *(item.choices or ()))

    def prompt(self, item: Question | Pair) -> str:
        """What the target is asked, after `Question: ` and before `Answer:`."""
        first, *rest = self.parts(item)
        return "\n".join([first.strip(), *(f"- {' '.join(part.split())}" for part in rest)])

    def answer(self, item: Question | Pair) -> str:
        """What the target learns to answer, after `Answer: `."""
        return item.answer

    def candidates(self, question: Question) -> tuple[str | None, ...]:
        """Answers whose likelihood is wanted in the evaluation; None is the question's own `answer`."""
        return (None,)

    def marks(self, question: Question, heard: Heard) -> Marks:
        """Marks what the target said to a test question."""
        accepted = question.answers or (question.answer,)
        matched = exact_match(heard.text, accepted)
        return Marks(heard.text, matched, exact_match=matched, token_f1=token_f1(heard.text, accepted))
