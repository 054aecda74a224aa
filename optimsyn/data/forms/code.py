"""The form `code`: a question whose answer is code. Nothing is ever executed."""

from __future__ import annotations

import ast
import json
import re
import textwrap
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError, ReplyError
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms.cells import written
from optimsyn.data.forms.form import Content, FormCheck, Gold, Heard, Key, Looked, Marks
from optimsyn.data.forms.lines import LinesForm, block, debris, text_of, texts_of, ungrounded
from optimsyn.data.records import Pair, Question

_FENCED = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n(?P<code>.*?)^[ \t]*(?P=fence)", re.M | re.S
)
_TOKENS = re.compile(r"\w+|[^\w\s]")
_LONGEST = 20_000
_SHARE_OF_QUESTION = 0.3
# Words of a programming task, which say nothing about its subject.
_TASK_WORDS = re.compile(
    r"\b(?:write|implement|define|create|give[ns]?|says?|returns?|prints?|computes?|calculates?|converts?|stores?|holds?|"
    r"python|json|toml|sql|functions?|methods?|class(?:es)?|scripts?|programs?|code|snippets?|dictionary|dict|lists?|"
    r"constants?|variables?|quer(?:y|ies)|values?|whether)\b",
    re.IGNORECASE,
)
_NAMES = {"py": "python", "python3": "python", "js": "javascript", "ts": "typescript", "sh": "bash", "shell": "bash"}
# Facts in a dictionary: small models can write those.
_ANSWERS = {
    "When was Halley's Comet last seen?": (
        "Write a Python dictionary with the last year in which Halley's Comet was seen and the years between passes.",
        'halley = {"last_seen": 1986, "years_between": 76}',
    ),
    "What does the barn swallow build its nest from?": (
        "Write a Python dictionary with the material and the place of a barn swallow's nest.",
        'nest = {"material": "pellets of mud", "place": "under the roofs of barns"}',
    ),
}


def _python(code: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = ast.parse(code).body
    if all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Name | ast.Constant) for line in body):
        raise ValueError("it is a bare name or value")


PARSERS: Mapping[str, Callable[[str], object]] = {"python": _python, "json": json.loads, "toml": tomllib.loads}
"""Parsers of the languages whose syntax is checked; code in another language is not."""


TRIED = "Python, JSON or TOML"
# What prose has not: brackets at a name, operators, ends of statements, options, or a query's first word.
_SIGN = re.compile(
    r"[={}\[\]<>|$#\\]|;\s*$|\w\(|\(\)|::|(?:^|\s)--?\w|:\s*$"
    r"|^\s*(?:select\b.*\bfrom|insert\s+into|delete\s+from|update\b.*\bset|create\s+\w+|drop\s+\w+)\b",
    re.I | re.M,
)


def _parses(code: str) -> bool:
    """Whether code whose language nobody names is valid in one of those with a parser, and no bare value."""
    for parse in PARSERS.values():
        try:
            value = parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if value is None or isinstance(value, dict | list):
            return True
    return False


def unnamed_note(questions: Sequence[Question]) -> str | None:
    """A note on questions of code that name no language, whose pairs may name none either; None without any."""
    count = sum(question.kind == "code" and not text_of(question, "language") for question in questions)
    if not count:
        return None
    return (
        f"questions: {plural(count, 'question')} whose answer is code {'names' if count == 1 else 'name'} no language; "
        f"where a pair names none either, its answer must be valid {TRIED}, or hold a sign of code (a bracket, =, ;), "
        "and its syntax is not checked beyond that: name it in the column `language`, or in a fence"
    )


def check_code_well_formed(pair: Pair, context: Looked) -> str | None:
    """There is code, and it parses if its language is Python, JSON or TOML; other languages are not checked.

    Where no language is named, it must be valid in one of the three, or hold a sign of code (a bracket, `=`, `;`).
    """
    code, language = pair.answer, text_of(pair, "language")
    if not re.search(r"\w", code):
        return "there is no code"
    if len(code) > _LONGEST:
        return f"the code has {len(code)} characters, more than {_LONGEST}"
    if _FENCED.search(f"{code}\n") or "```" in code:
        return "the code holds a fence (```)"
    if (label := debris(code)) is not None:
        return label
    if language in PARSERS:
        try:
            PARSERS[language](code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"the code is no valid {language}: {str(error) or type(error).__name__}"
    if not language and _SIGN.search(code) is None and not _parses(code):
        return f"no language is named; it is no valid {TRIED}, which were tried, and has no sign of code"
    return None


def check_code_task_grounded(pair: Pair, context: Looked) -> str | None:
    """A third of the task's content words come from the passage; words such as function or Python do not count."""
    task = _TASK_WORDS.sub(" ", pair.question)
    return ungrounded("question", task, context, share=_SHARE_OF_QUESTION, figures=False)


@dataclass(frozen=True)
class Code(LinesForm):
    """A question whose answer is code, which the target learns in a fenced block.

    It is right if it equals the code but for white space at the ends of lines and around; F1 over its tokens besides.

    Attributes:
        language: Of the code, if nearly all questions have the same; "" where the generator says.
    """

    label: ClassVar[str] = "code"
    columns: ClassVar[tuple[str, ...]] = ("language",)
    free_length: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, FormCheck]] = {
        "code_well_formed": check_code_well_formed,
        "code_task_grounded": check_code_task_grounded,
    }
    language: str = ""

    def fitted(self, questions: Sequence[Question]) -> Code:
        """With the language of the questions."""
        counts = Counter(text_of(question, "language") for question in questions if question.kind == "code")
        common = counts.most_common(1)
        return Code(common[0][0]) if common and 2 * common[0][1] > counts.total() else self

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads `answer`, with a fence or without, and `language`, which a fence may name."""
        code, named = _unfenced(texts_of(values))
        if not code.strip():
            raise DataError("has no answer; give it an `answer` that is code, or remove the row")
        language = _language(written(values.get("language"))) or named
        return Gold(code, (code,), details=_details(language))

    def described(self) -> str:
        """Names the language."""
        return f"a question whose answer is {self.language or 'short'} code"

    def task(self) -> str:
        """Code."""
        return "From each passage: a quoted sentence, a task about it and the code that solves the task."

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """The task and the code; its language where the questions have several."""
        what = self.language or "code"
        keys = (
            Key(
                "question", f"a task that a few lines of {what} solve; it names the language and ends with a full stop"
            ),
            Key(
                "answer",
                f"the {what}{'' if self.language == '' else ' code'}, with its line breaks, without a fence",
                lines=True,
            ),
        )
        return keys if self.language else (*keys, Key("language", "the language of the code", needed=False))

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """A few lines of Python for each example."""
        question, answer = _ANSWERS[demo.question]
        shown = {"question": question, "answer": answer}
        return shown if self.language else shown | {"language": "python"}

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """The code may come under its own name."""
        if "code" in values:
            values.setdefault("answer", values["code"])
        return values

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The code without its fence."""
        code, named = _unfenced(reply["answer"])
        if not code.strip():
            raise ReplyError("the pair's `answer` holds no code")
        language = named or _language(reply.get("language", "")) or self.language
        return Content(reply["question"], code, details=_details(language))

    def checked(self, pair: Pair, check: str) -> Pair | None:
        """Code is neither words of the passage nor of the question; of `grounded` the quote is left."""
        if check in ("answered_by_itself", "answer_fits_question") or (check == "grounded" and not pair.quote):
            return None
        seen = {"answer": "code", "details": {**pair.details, "whole_answer": pair.answer}}
        if check == "grounded":
            seen |= {"question": pair.quote, "answer": pair.quote}
        if check == "demo_copy":
            seen["question"] = _TASK_WORDS.sub(" ", pair.question)
        return pair.model_copy(update=seen)

    def answer(self, item: Question | Pair) -> str:
        """The code in a fenced block."""
        fence = "````" if "```" in item.answer else "```"
        return f"{fence}{text_of(item, 'language')}\n{item.answer}\n{fence}"

    def marks(self, question: Question, heard: Heard) -> Marks:
        """Exact match and F1 of the code's tokens; the first fenced block counts, or else the whole text."""
        code, _ = _unfenced(heard.text)
        right = _plain(code) == _plain(question.answer)
        return Marks(code, right, exact_match=right, token_f1=_code_f1(code, question.answer))


def _unfenced(text: str) -> tuple[str, str]:
    """The code of the first fenced block, or of the whole text, and the language that the fence names."""
    # A fence that is not closed ends with the text.
    match = _FENCED.search(text.rstrip() + "\n") or _FENCED.search(text.rstrip() + "\n```") or None
    if match is None:
        return block(textwrap.dedent(block(text))), ""
    return block(textwrap.dedent(match["code"])), _language(match["language"])


def _language(name: str) -> str:
    name = name.strip().lower()
    return _NAMES.get(name, name)


def _details(language: str) -> dict[str, Any]:
    """The language, and whether its syntax was checked, for the dataset and its readers."""
    return ({"language": language} if language else {}) | {"syntax_checked": language in PARSERS}


def _plain(code: str) -> str:
    lines = textwrap.dedent(block(code)).expandtabs(4).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _code_f1(code: str, wanted: str) -> float:
    given, gold = Counter(_TOKENS.findall(code)), Counter(_TOKENS.findall(wanted))
    return 2 * (given & gold).total() / (given.total() + gold.total())
