"""Rubrics: the writer, the policy's prompt, and the reader of both.

Chat models write a rubric as a JSON object. Base models, among them the embedded one with its adapter, and the policy,
which reinforcement learning trains, write five lines:

    Question type: …
    Question quality: …
    Answer quality: …
    Alignment: …
    Trainability: …
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import dspy

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.data.records import Passage, Rubric
from optimsyn.llm.reading.plain_text import beginning, one_line
from optimsyn.llm.reading.unusable import was_cut
from optimsyn.llm.reading.values import objects_in, read
from optimsyn.llm.replies import Reply
from optimsyn.programs.messages import Message
from optimsyn.programs.prompts import writer_prompts
from optimsyn.programs.prompts.adapter import PromptAdapter, ask
from optimsyn.programs.prompts.rubric_prompts import CUE, LABELS, STOP, chat_messages, lines_prompt, rubric_schema
from optimsyn.programs.task_shape import TaskShape

if TYPE_CHECKING:
    from optimsyn.llm.language_model import LanguageModel, Manner

# Short keys, accepted beside the full names and the labels of the five lines.
_SHORT = {"type": "question_type", "question": "question_quality", "answer": "answer_quality"}
_FIELD_OF = {
    **{name: name for name in LABELS},
    **{label.lower().replace(" ", "_"): name for name, label in LABELS.items()},
    **_SHORT,
}
_LINE = re.compile(
    r"^[\s*#>\-\d.]*(?P<label>" + "|".join(LABELS.values()) + r")[\s*]*[:：][\s*]*(?P<value>.*)$", re.IGNORECASE
)
_LONGEST = 400


class WriteRubric(dspy.Signature):
    """Write the criteria for one question and its answer."""

    passage: str = dspy.InputField(desc="the text that the question is made from")
    kind: str = dspy.InputField(desc="the form of the question")
    rubric: Rubric = dspy.OutputField(desc="the criteria")


class RubricWriter(dspy.Module):
    """Writes the rubric for one passage under a guiding text.

    The guiding text is the instruction of the one Predict inside (`write`), so that a DSPy optimiser can rewrite it.

    Args:
        model: Writes the rubrics.
        guiding_text: A few sentences by a person or an optimiser.
        shape: The form of the questions; None: a form's own defaults.

    Example:
        >>> writer = RubricWriter(load_language_model(recipe.models.rubric), recipe.guiding_text)  # doctest: +SKIP
        >>> writer(passage=passage, kind="free", seed=1).rubric.question_type                      # doctest: +SKIP
        'quantity'
    """

    def __init__(self, model: LanguageModel, guiding_text: str, shape: TaskShape | None = None) -> None:
        super().__init__()
        self._shared = Shared(model)
        self.shape = shape or TaskShape()
        self.write = dspy.Predict(WriteRubric.with_instructions(guiding_text))

    @property
    def model(self) -> LanguageModel:
        """The language model; copies of this module share it."""
        return self._shared.model

    @property
    def guiding_text(self) -> str:
        """The guiding text of the next rubric."""
        return str(self.write.signature.instructions)

    @guiding_text.setter
    def guiding_text(self, text: str) -> None:
        self.write.signature = self.write.signature.with_instructions(text)

    async def aforward(self, passage: Passage, kind: str = "free", seed: int = 0) -> dspy.Prediction:
        """Writes one rubric.

        Returns:
            A prediction whose `rubric` is a Rubric.

        Raises:
            ReplyError: The reply has no complete rubric.
            ServiceError: The service failed for good.
        """
        manner = self.model.manner
        form = self.shape.form(kind).described()

        def messages(guiding_text: str, inputs: dict[str, Any]) -> list[Message]:
            if manner == "chat":
                return chat_messages(guiding_text, inputs["passage"], form)
            return list(rubric_messages(guiding_text, passage, form, manner=manner)[0])

        # In JSON nothing is missing for a label at the end of the prompt.
        parse = parse_rubric if manner == "chat" else complete_rubric
        return await ask(
            self.write,
            self.model,
            PromptAdapter(messages, lambda reply, max_tokens: parse(reply, max_tokens=max_tokens), "rubric"),
            seed=seed,
            schema=("rubric", rubric_schema()) if manner == "chat" else None,
            stop=() if manner == "chat" else STOP,
            passage=passage.text,
            kind=kind,
        )

    def forward(self, passage: Passage, kind: str = "free", seed: int = 0) -> dspy.Prediction:
        """The same, for callers without an event loop (DSPy's optimisers call programs in threads)."""
        from optimsyn.llm.language_model import run_sync

        return run_sync(self.aforward(passage=passage, kind=kind, seed=seed))


class Shared:
    """A language model that deep copies of a program share."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self


def rubric_prompt(guiding_text: str, passage: Passage, form: str, *, manner: Manner) -> str | list[Message]:
    """The local policy's prompt for one rubric, as `rubric_messages` has it, for TRL.

    Returns:
        Plain text, or chat messages for a model with a chat template; read the completion with `complete_rubric`.
    """
    messages, _ = rubric_messages(guiding_text, passage, form, manner=manner)
    return list(messages) if manner == "chat" else messages[0]["content"]


def rubric_messages(
    guiding_text: str, passage: Passage, form: str, *, manner: Manner
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The prompt for five lines as the messages of a `Call`, with the texts that end the reply.

    Args:
        guiding_text: The guiding text.
        passage: The text for the pair.
        form: What is said about the form of the question, as `QuestionForm.described`; "" for nothing.
        manner: How the model is addressed; see `LanguageModel.manner`.
    """
    if manner == "chat":
        return tuple(chat_messages(guiding_text, passage.text, form, lines=True)), ()
    if manner == "writer":
        text = writer_prompts.rubric_prompt(passage.text, guiding_text, form)
    else:
        text = lines_prompt(guiding_text, passage.text, form)
    return ({"role": "user", "content": text},), STOP


def complete_rubric(completion: Reply | str, *, max_tokens: int | None = None) -> Rubric:
    """Reads a reply of five lines; adds the label of the first, in which a prompt may end, if it is missing.

    Raises:
        ReplyError: A criterion is missing; the message names it.
    """
    return parse_rubric(completion, max_tokens=max_tokens, cue=True)


def parse_rubric(reply: Reply | str, *, max_tokens: int | None = None, cue: bool = False) -> Rubric:
    """Reads a rubric from a reply: five lines, or a JSON object with long or short keys.

    Text after the rubric (a base model continues with the next passage) is ignored. Of several objects, the first
    complete one counts.

    Args:
        reply: A reply, or its text.
        max_tokens: The limit of the reply.
        cue: Whether the prompt ended in the label of the first line.

    Raises:
        ReplyError: A criterion is missing or empty; the message names it. Or there is no rubric to judge; see the
            outcome.
    """
    # A last line that ends in the middle is no criterion.
    cut = isinstance(reply, Reply) and was_cut(reply) and not reply.text.rstrip(" ").endswith("\n")
    return read(reply, partial(_parse, cut=cut, cue=cue), "rubric", max_tokens=max_tokens)


def _parse(text: str, repair: bool, *, cut: bool, cue: bool) -> Rubric:
    best: dict[str, str] = {}
    for raw in objects_in(text, repair) if "{" in text else ():
        fields = _fields(raw)
        if len(fields) > len(best):
            best = fields
        if not _missing(fields):
            return _rubric(fields)
    lines, broken_off = _from_lines(f"{CUE} {text}" if cue and _lacks_cue(text) else text)
    if lines and not _missing(lines):
        if cut and broken_off:
            raise ReplyError("the rubric's last line breaks off", Outcome.CUT)
        return _rubric(lines)
    best = best or lines
    raise ReplyError(f"the rubric lacks {', '.join(_missing(best))}; the reply begins {beginning(text)}")


def _missing(fields: dict[str, str]) -> list[str]:
    return [label for name, label in LABELS.items() if not re.search(r"\w", fields.get(name, ""))]


def _rubric(fields: dict[str, str]) -> Rubric:
    long = [LABELS[name] for name, value in fields.items() if len(value) > _LONGEST]
    if long:
        raise ReplyError(f"the rubric's {long[0]} runs on over {_LONGEST} characters; a criterion is one short line")
    return Rubric(**fields)


def _fields(raw: dict[str, Any]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for key, value in raw.items():
        name = _FIELD_OF.get(re.sub(r"[\s-]+", "_", key.strip().lower()))
        if name is not None and (line := one_line(value, several=True)):
            fields.setdefault(name, line)
    return fields


def _lacks_cue(text: str) -> bool:
    """Whether the first criterion lacks its label, because the prompt ended in it."""
    first = next((match for line in text.splitlines() if (match := _LINE.match(line))), None)
    return first is None or first["label"].lower() != LABELS["question_type"].lower()


def _from_lines(text: str) -> tuple[dict[str, str], bool]:
    """The criteria in the lines of a text, and whether the last of them is in the last line."""
    labels = {label.lower(): name for name, label in LABELS.items()}
    fields: dict[str, str] = {}
    lines = text.splitlines()
    last = 0
    for number, line in enumerate(lines, 1):
        match = _LINE.match(line)
        if match is None:
            if len(fields) == len(LABELS):
                break
            continue
        # The first of each counts: a base model may continue with the next rubric.
        name = labels[match["label"].lower()]
        if name not in fields:
            fields[name] = one_line(match["value"].strip(" *"))
            last = number
    return fields, last == len(lines)


def rubric_text(rubric: Rubric) -> str:
    """The five lines of a rubric; `parse_rubric` reads them back."""
    return "\n".join(f"{label}: {getattr(rubric, name)}" for name, label in LABELS.items())
