"""Pairs of the writer: sampled in batches with transformers, read, checked and tested for the form they should have."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from writer_forms import FORMS, Written

from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.programs.checker import Checker
from optimsyn.programs.prompts.writer_prompts import OPTION_MARK
from optimsyn.recipe.sections.synthesis import Checks

# As in a recipe, and as the embedded model's server samples.
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.7, 40, 0.95, 0.05
LONGEST = 200


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
    """

    wish: Wish
    reply: str
    pair: Pair | None
    obeys: bool
    failed: dict[str, str]

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


def checker() -> Checker:
    """The built-in checks, without held-back questions."""
    return Checker(Checks())


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
        "valid": _mean([each.valid for each in outcomes]),
        "both": _mean([each.obeys and each.valid for each in outcomes]),
        "different pairs of a passage": sum(different) / len(different),
        "of": len(outcomes) / len(by_passage),
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
