"""The form `long_answer`: several sentences, paragraphs or lines, kept as they are written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any, ClassVar

from optimsyn.base.errors import DataError
from optimsyn.data.answer_metrics import normalize_answer, token_f1
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms.cells import list_cell
from optimsyn.data.forms.form import FormCheck, Gold, Heard, Key, Looked, Marks
from optimsyn.data.forms.lines import LinesForm, debris, flat, sentences, texts_of, ungrounded, written_lines
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import is_quoted, normalized, word_count, words_of

_WORDS = 60
_LONGEST = 800
_SHARE_IN_PASSAGE = 0.5
# A run of so many words of the passage, and so large a share of the answer, is a copy.
_COPIED_WORDS = 40
_COPIED_SHARE = 0.6
_LIST_OR_TABLE = re.compile(r"^\s*(?:[-*+•|#>]|\d{1,3}[.)]\s|```|~~~|\$\$|\\)")
_ENDED = re.compile(r"[.!?…:;。！？।؟)\]}\"'”’»*_`$|]\s*$")
_ANSWERS = {
    "When was Halley's Comet last seen?": (
        "What is Halley's Comet like, and how often can it be seen?",
        "Like other comets, Halley's Comet consists mostly of ice and dust. It was last seen in 1986, and it passes "
        "the Earth about every 76 years.",
    ),
    "What does the barn swallow build its nest from?": (
        "How does the barn swallow feed and nest?",
        "- Food: it feeds on insects that it catches in flight.\n- Nest: it builds its nest from pellets of mud, under "
        "the roofs of barns.",
    ),
}


def check_long_answer_well_formed(pair: Pair, context: Looked) -> str | None:
    """Two sentences or lines at least, not cut, no sentence twice; fences, mathematics and tables complete."""
    answer = pair.answer
    if len(parts := sentences(answer)) < 2:
        return "the answer is one sentence; a long answer has several"
    if word_count(answer) > _LONGEST:
        return f"the answer has {word_count(answer)} words, more than {_LONGEST}"
    if (label := debris(answer)) is not None:
        return label
    plain = [normalized(part) for part in parts if len(words_of(part)) > 4]
    if len(set(plain)) < len(plain):
        return "the answer says a sentence twice"
    last = answer.rstrip().splitlines()[-1]
    if len(words_of(last)) > 4 and not _LIST_OR_TABLE.match(last) and not _ENDED.search(last):
        return "the answer is cut off"
    return _broken_markup(answer)


def _broken_markup(answer: str) -> str | None:
    if (answer.count("```") + answer.count("~~~")) % 2:
        return "a fence (```) is not closed"
    begun, ended = (sorted(re.findall(rf"\\{word}\{{(\w+\*?)\}}", answer)) for word in ("begin", "end"))
    if begun != ended or answer.count("$$") % 2:
        return "LaTeX is not closed"
    for is_row, rows in groupby(answer.splitlines(), key=lambda line: line.lstrip().startswith("|")):
        cells = {len(re.findall(r"(?<!\\)\|", row.strip().strip("|"))) for row in rows} if is_row else set()
        if len(cells) > 1:
            return "the rows of a table have different numbers of cells"
    return None


def check_long_answer_grounded(pair: Pair, context: Looked) -> str | None:
    """Half of its content words come from the passage, all its figures do, and it is no copy of the passage."""
    answer, source = words_of(flat(pair.answer)), words_of(context.passage.text)
    run = difflib.SequenceMatcher(None, answer, source, autojunk=False).find_longest_match().size
    if run >= _COPIED_WORDS and run > _COPIED_SHARE * len(answer):
        return "the answer is copied from the passage"
    if is_quoted(pair.question, context.passage.text):
        return "the question is copied from the passage"
    return ungrounded("answer", pair.answer, context, share=_SHARE_IN_PASSAGE, also=pair.question)


@dataclass(frozen=True)
class LongAnswer(LinesForm):
    """A question with an answer of several sentences or lines. Lists, tables and LaTeX stay as written.

    It is marked by token F1 and ROUGE-L; no answer is simply right.
    """

    label: ClassVar[str] = "long answers"
    in_rubric: ClassVar[str] = "a question with a full answer of several sentences"
    checks: ClassVar[Mapping[str, FormCheck]] = {
        "long_answer_well_formed": check_long_answer_well_formed,
        "long_answer_grounded": check_long_answer_grounded,
    }
    answer_words: int = _WORDS

    def fitted(self, questions: Sequence[Question]) -> LongAnswer:
        """With the questions' length of answers."""
        lengths = [word_count(question.answer) for question in questions if question.kind == "long_answer"]
        return LongAnswer(max(1, round(median(lengths)))) if lengths else self

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads `answer` and `answers` with their line breaks."""
        further = values.get("answers")
        listed = [] if further in (None, "") else [written_lines(text) for text in list_cell(further, "answers")]
        answers = [text for text in (texts_of(values), *listed) if text.strip()]
        if not answers:
            raise DataError("has no answer; give it an `answer` of several sentences, or remove the row")
        return Gold(answers[0], tuple(dict.fromkeys(answers)))

    def task(self) -> str:
        """A full answer."""
        return (
            "From each passage: a quoted sentence, a full answer of several sentences and the question that it answers."
        )

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """Answer and question."""
        return (
            Key(
                "answer",
                f"the full answer, of several sentences or lines (about {self.answer_words} words), in your own words; "
                "a list, a table or LaTeX where the matter asks for it",
                lines=True,
            ),
            Key("question", "the exam question that it answers, clear to a reader who has not seen the passage"),
        )

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """A longer answer for each example."""
        question, answer = _ANSWERS[demo.question]
        return {"answer": answer, "question": question}

    def marks(self, question: Question, heard: Heard) -> Marks:
        """Token F1 and ROUGE-L, against the best accepted answer."""
        accepted = question.answers or (question.answer,)
        return Marks(
            heard.text,
            None,
            token_f1=token_f1(heard.text, accepted),
            further={"rouge_l": rouge_l(heard.text, accepted)},
        )


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Largest F1 of the longest common subsequence of words with an accepted answer (Lin 2004), words as for F1."""
    from rapidfuzz.distance import LCSseq

    predicted = normalize_answer(prediction).split()
    best = 0.0
    for answer in answers:
        wanted = normalize_answer(answer).split()
        if predicted and wanted:
            best = max(best, 2 * LCSseq.similarity(predicted, wanted) / (len(predicted) + len(wanted)))
    return best
