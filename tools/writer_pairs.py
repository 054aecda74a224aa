"""Pairs of the writer: sampled in batches with transformers, read, checked and tested for the form they should have."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from writer_forms import FORMS, Written

from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.programs.checker import Checker
from optimsyn.programs.prompts.writer_prompts import OPTION_MARK
from optimsyn.recipe.sections.models import ModelSpec
from optimsyn.recipe.sections.synthesis import Checks

# As in a recipe, and as the embedded model's server samples.
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.7, 40, 0.95, 0.05
LONGEST = 200
# Requests that the embedded model's server answers at once.
SLOTS = 4


@dataclass(frozen=True)
class Wish:
    """A pair that is wanted.

    Attributes:
        passage: The text.
        form: The form that the rubric asks for.
        rubric: The rubric.
    """

    passage: Passage
    form: str
    rubric: Rubric


@dataclass(frozen=True)
class Outcome:
    """What became of a wish.

    Attributes:
        wish: The wish.
        reply: The model's reply.
        pair: None if the reply could not be read.
        obeys: The pair has the form of its rubric.
        failed: Why it is invalid, by check; empty for a valid pair.
        redrafts: How often it was written again.
    """

    wish: Wish
    reply: str
    pair: Pair | None
    obeys: bool
    failed: dict[str, str]
    redrafts: int = 0

    @property
    def valid(self) -> bool:
        """There is a pair, and it passes the checks."""
        return self.pair is not None and not self.failed

    def row(self) -> dict[str, Any]:
        """One line of a result file."""
        pair = self.pair
        return {
            "passage_id": self.wish.passage.id,
            "form": self.wish.form,
            "rubric": self.wish.rubric.question_type,
            "question": pair.question if pair else None,
            "options": list(pair.choices) if pair and pair.choices else None,
            "answer": pair.answer if pair else None,
            "quote": pair.quote if pair else None,
            "obeys": self.obeys,
            "failed": self.failed,
            "redrafts": self.redrafts,
            **({} if pair else {"reply": self.reply}),
        }


def passage_of(name: str, text: str, title: str = "") -> Passage:
    """A passage of its own document."""
    return Passage(id=name, document_id=name, text=text, title=title, char_start=0, char_end=len(text))


def replies(model: Any, tokenizer: Any, prompts: Sequence[str], *, seed: int, batch_size: int) -> list[str]:
    """Sampled replies, up to a blank line, in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([prompts[row] for row in rows], return_tensors="pt", padding=True).to(model.device)
        with torch.inference_mode():
            ids = model.generate(
                **batch,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                top_p=TOP_P,
                min_p=MIN_P,
                max_new_tokens=LONGEST,
                pad_token_id=tokenizer.pad_token_id,
            )
        for row, text in zip(
            rows, tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True), strict=True
        ):
            texts[row] = text.split("\n\n")[0]
    tokenizer.padding_side = "right"
    return texts


async def by_product(
    wishes: Sequence[Wish],
    seeds: Sequence[int],
    *,
    temperature: float | None = None,
    redrafts: int = 0,
    keep: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Pairs of the embedded model, as a run writes them.

    What is wanted of one passage is written one after another, by one slot of the server, which has read it then.

    Args:
        wishes: What to write.
        seeds: Of each wish.
        temperature: Of the model; None: its default.
        redrafts: As in a recipe, `checks.redrafts`.
        keep: Is told each outcome with its wish's number when it is there.

    Returns:
        The outcomes, in the order of the wishes.
    """
    from optimsyn.llm.factory import load_language_model
    from optimsyn.programs.pair import PairWriter
    from optimsyn.programs.task_shape import TaskShape
    from optimsyn.reward.drafting import Drafter, RubricRequest

    chosen = {} if temperature is None else {"temperature": temperature}
    model = load_language_model(ModelSpec(name="embedded", **chosen))
    checks = checker(redrafts)
    drafters = {name: Drafter(PairWriter(model, TaskShape.only(name)), checks) for name in ("free", "multiple_choice")}

    async def one(number: int, wish: Wish) -> Outcome:
        kind = "multiple_choice" if wish.form == "options" else "free"
        request = RubricRequest(
            passage=wish.passage, kind=kind, rubric=wish.rubric, seed=seeds[number], variant="measured"
        )
        draft = await drafters[kind].draft(request)
        failed, pair, again = dict(draft.reasons), draft.pair, getattr(draft, "redrafts", 0)
        if pair is None:
            result = Outcome(wish, " ".join(draft.remarks), None, False, failed, again)
        else:
            shape = Written(wish.passage.text, pair.question, pair.answer, pair.choices or ())
            result = Outcome(wish, "", pair, FORMS[wish.form](shape), failed, again)
        if keep is not None:
            keep(number, result)
        return result

    by_passage: dict[str, list[int]] = {}
    for number, wish in enumerate(wishes):
        by_passage.setdefault(wish.passage.id, []).append(number)
    made: dict[int, Outcome] = {}
    at_once = asyncio.Semaphore(SLOTS)

    async def all_of(numbers: Sequence[int]) -> None:
        async with at_once:
            for number in numbers:
                made[number] = await one(number, wishes[number])

    await asyncio.gather(*map(all_of, by_passage.values()))
    return [made[number] for number in range(len(wishes))]


def outcome(wish: Wish, reply: str, checker: Checker, number: int = 0) -> Outcome:
    """Reads, tests and checks one reply (labelled lines or a JSON object)."""
    values = _values(reply)
    question, answer = values.get("question", ""), values.get("answer", "")
    options = tuple(part.strip() for part in values.get("options", "").split(OPTION_MARK.strip()) if part.strip())
    if not question or not answer or (options and answer not in options):
        return Outcome(wish, reply, None, False, {"pair_format": "the reply holds no pair"})
    pair = Pair(
        id=f"{wish.passage.id}-{number}",
        question=question,
        answer=answer,
        choices=options or None,
        answer_index=options.index(answer) if options else None,
        quote=values.get("quote", ""),
        passage_id=wish.passage.id,
        rubric=wish.rubric,
    )
    obeys = FORMS[wish.form](Written(wish.passage.text, question, answer, options))
    return Outcome(wish, reply, pair, obeys, dict(checker.check(pair, wish.passage).reasons))


def checker(redrafts: int = 0) -> Checker:
    """The built-in checks, without held-back questions."""
    # An older checkout that measures itself has no such field.
    return Checker(Checks(**({"redrafts": redrafts} if redrafts else {})))


def shares(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The shares of pairs that obey, that are valid, and that differ from the others of their passage."""
    by_passage: dict[str, list[Outcome]] = {}
    for each in outcomes:
        by_passage.setdefault(each.wish.passage.id, []).append(each)
    different = [
        len({(o.pair.question.lower(), o.pair.answer.lower()) for o in group if o.pair})
        for group in by_passage.values()
    ]
    forms = sorted({each.wish.form for each in outcomes})
    checks: dict[str, int] = {}
    for each in outcomes:
        for name in each.failed:
            checks[name] = checks.get(name, 0) + 1
    return {
        "pairs": len(outcomes),
        "obey": _mean([each.obeys for each in outcomes]),
        "valid at first": _mean([each.valid and not each.redrafts for each in outcomes]),
        "valid": _mean([each.valid for each in outcomes]),
        "both": _mean([each.obeys and each.valid for each in outcomes]),
        "different pairs of a passage": sum(different) / len(different),
        "of": len(outcomes) / len(by_passage),
        "drafts of a pair": round(1 + sum(each.redrafts for each in outcomes) / len(outcomes), 4),
        "obey by form": {f: _mean([o.obeys for o in outcomes if o.wish.form == f]) for f in forms},
        "valid by form": {f: _mean([o.valid for o in outcomes if o.wish.form == f]) for f in forms},
        "failed checks": checks,
    }


def _mean(values: Sequence[bool]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def _values(reply: str) -> dict[str, str]:
    text = reply.strip()
    if text.startswith("{"):
        try:
            raw = json.loads(text)
        except json.JSONDecodeError:
            return {}
        values = {str(key): value for key, value in raw.items()} if isinstance(raw, dict) else {}
        return {
            key: OPTION_MARK.join(map(str, value)) if isinstance(value, list) else str(value)
            for key, value in values.items()
        }
    lines = (re.match(r"(Quote|Question|Options|Answer): ?(.*)$", line) for line in text.splitlines())
    return {line[1].lower(): line[2].strip() for line in lines if line}
