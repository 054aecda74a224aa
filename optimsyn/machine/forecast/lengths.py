"""The lengths of a recipe's prompts and replies in tokens, counted in real prompts of some of its passages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from optimsyn.data.demonstrations import DEMOS
from optimsyn.data.records import Pair, Passage
from optimsyn.data.splits import evenly
from optimsyn.llm.hosted.capabilities import abilities_of
from optimsyn.llm.token_counts import CHARACTERS_A_TOKEN, CountTokens, by_characters, counter_of
from optimsyn.programs.judge import judge_messages
from optimsyn.programs.prompts import pair_prompts, rubric_prompts, writer_prompts
from optimsyn.programs.prompts.author_prompts import author_messages
from optimsyn.programs.task_shape import TaskShape
from optimsyn.recipe.sections.author import author_model
from optimsyn.runs.forecast import Range

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import ModelSpec, Recipe

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
# Passages whose prompts are counted, evenly spread over all.
_SAMPLED = 24
# Models write longer replies than the demonstrations.
_WORDIER = 1.1
_EMBEDDED_WORDIER = 1.35
# Tokens of thinking before such a short answer: some hundred, at most this share of the cap.
_THOUGHT = 600
# Tokens of an author's step with its result in later prompts, and of its thought and its line.
_STEP_IN = 110
_STEP_OUT = 40
_THOUGHT_SHARE = 0.4


Kind = Literal["rubric", "policy", "pair", "bare", "reflection", "judge", "author"]
"""What a request asks for."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of one request (`_in`) and reply (`_out`) of each kind; `bare` is a pair without a rubric."""

    rubric_in: Range
    rubric_out: Range
    policy_in: Range
    pair_in: Range
    bare_in: Range
    pair_out: Range
    reflection_in: Range
    reflection_out: Range
    judge_in: Range
    judge_out: Range
    author_in: Range
    author_out: Range
    notes: tuple[str, ...] = ()


def measure(recipe: Recipe, passages: Sequence[Passage], shape: TaskShape | None) -> Lengths:
    """Counts the tokens of real prompts of some passages; without passages or a shape, assumes them and notes that."""
    notes = []
    texts = [passage.text for passage in evenly(passages, _SAMPLED)]
    if not texts:
        texts = [_sample_text(recipe.documents.passage_words)]
        notes.append("The passages are not read yet; their length is assumed to be documents.passage_words.")
    if shape is None:
        shape = TaskShape()
        notes.append("The questions are not read yet; short free answers are assumed.")
    models = recipe.models
    count_rubric, exact = _counter(models.rubric)
    count_pair, exact_pairs = _counter(models.generator)
    if not (exact and exact_pairs):
        notes.append(f"Tokens are estimated at {CHARACTERS_A_TOKEN:g} characters each where no tokenizer is known.")
    kinds = [(form.name, form.share) for form in shape.forms]
    rubric = DEMOS[0].rubric

    def mean(count: CountTokens, prompt: Callable[[str, str], str]) -> float:
        return sum(
            share * sum(count(prompt(text, kind)) for text in texts) / len(texts) for kind, share in kinds if share
        )

    chat_rubrics, chat_pairs = models.rubric.provider != "embedded", models.generator.provider != "embedded"

    def rubric_prompt(text: str, kind: str) -> str:
        form = shape.form(kind).described()
        if chat_rubrics:
            return _joined(rubric_prompts.chat_messages(recipe.guiding_text, text, form))
        return writer_prompts.rubric_prompt(text, recipe.guiding_text, form)

    def policy_prompt(text: str, kind: str) -> str:
        if not chat_rubrics:
            return rubric_prompt(text, kind)
        form = shape.form(kind).described()
        return _joined(rubric_prompts.chat_messages(recipe.guiding_text, text, form, lines=True))

    def pair_prompt(text: str, kind: str, under: Any = rubric) -> str:
        form = shape.form(kind)
        if chat_pairs:
            return _joined(pair_prompts.chat_messages(form, text, under))
        known = pair_prompts.writer_knows(form)
        return (pair_prompts.writer_prompt if known else pair_prompts.base_prompt)(form, text, under)

    def author_prompt(text: str, kind: str) -> str:
        described = shape.form(kind).described()
        return _joined(author_messages(recipe.guiding_text, text, described, transcript="", left="", chat=True))

    quotes = [sentence for text in texts for sentence in _SENTENCE_END.split(text)]
    quote = max(1.0, sum(count_pair(sentence) for sentence in quotes) / max(1, len(quotes)))

    def demo_length(kind: str) -> float:
        replies = [{**pair_prompts.demo_reply(demo, shape.form(kind)), "quote": ""} for demo in shape.form(kind).demos]
        return sum(count_pair(json.dumps(reply)) for reply in replies) / len(replies)

    pair_reply = sum(share * demo_length(kind) for kind, share in kinds)
    rubric_reply = sum(count_rubric(json.dumps(demo.rubric.model_dump())) for demo in DEMOS) / len(DEMOS)
    reflection = models.reflection
    of_steps = recipe.author.steps / 2 * _STEP_IN if recipe.optimizers.prompt.for_author else 0.0
    examples_in = recipe.optimizers.prompt.minibatch * (mean(count_pair, pair_prompt) / 2 + 200 + of_steps)
    judge_in = judge_out = 0.0
    if models.judge is not None:
        count_judge = _counter(models.judge)[0]
        judge_in = sum(count_judge(_judge_prompt(recipe, text)) for text in texts) / len(texts)
        judge_out = 8.0 * len(recipe.checks.judge.criteria)
    author_in = mean(_counter(author_model(models))[0], author_prompt) + recipe.author.steps / 2 * _STEP_IN
    return Lengths(
        rubric_in=_prompt(mean(count_rubric, rubric_prompt)),
        rubric_out=_reply(models.rubric, rubric_reply * _WORDIER),
        policy_in=_prompt(mean(count_rubric, policy_prompt)),
        pair_in=_prompt(mean(count_pair, pair_prompt)),
        bare_in=_prompt(mean(count_pair, lambda text, kind: pair_prompt(text, kind, None))),
        pair_out=_reply(models.generator, (pair_reply + quote) * (_WORDIER if chat_pairs else _EMBEDDED_WORDIER)),
        reflection_in=Range(low=examples_in / 2, expected=examples_in, high=3 * examples_in),
        reflection_out=_reply(reflection, 150.0) if reflection is not None else Range(),
        judge_in=_prompt(judge_in),
        judge_out=_reply(models.judge, judge_out) if models.judge is not None else Range(),
        author_in=Range(low=0.6 * author_in, expected=author_in, high=2.5 * author_in),
        author_out=_reply(author_model(models), _STEP_OUT + rubric_reply / 2),
        notes=tuple(notes),
    )


def _judge_prompt(recipe: Recipe, text: str) -> str:
    demo = DEMOS[0]
    pair = Pair(id="", question=demo.question, answer=demo.answer, passage_id="")
    passage = Passage(id="", document_id="", text=text, char_start=0, char_end=len(text))
    return _joined(judge_messages(recipe.checks.judge, pair, passage, chat=True))


def thinks(spec: ModelSpec) -> bool:
    """Whether a hosted model is known to think before it answers."""
    return spec.provider == "litellm" and bool(abilities_of(spec).thinks)


def _prompt(tokens: float) -> Range:
    """A range, because a service counts differently and adds the schema."""
    return Range(low=0.85 * tokens, expected=tokens, high=1.35 * tokens)


def _reply(spec: ModelSpec, tokens: float) -> Range:
    most = float(spec.max_tokens)
    if thinks(spec):
        thought = min(_THOUGHT, _THOUGHT_SHARE * most)
        return Range(low=min(0.6 * tokens, most), expected=min(tokens + thought, most), high=most)
    return Range(low=min(0.6 * tokens, most), expected=min(tokens, most), high=min(2.5 * tokens, most))


def _counter(spec: ModelSpec) -> tuple[CountTokens, bool]:
    """A counter for the model's tokens, and whether it uses a vocabulary rather than characters."""
    if spec.provider == "litellm":
        return counter_of(spec.name), True
    return by_characters, False


def _joined(messages: Sequence[dict[str, str]]) -> str:
    # The prefix stands for each message's template tokens.
    return "\n".join("user ok go on " + message["content"] for message in messages)


def _sample_text(words: int) -> str:
    """A typical text with this many words."""
    demo = " ".join(demo.passage for demo in DEMOS).split()
    return " ".join(demo[index % len(demo)] for index in range(words))
